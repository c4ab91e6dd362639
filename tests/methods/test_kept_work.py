"""What a block keeps of its work: weights of the last decision, and its J."""

import random

import pytest
import torch

from qvlm_lightning.methods import GPTQ, ByKind, Chain, Decision, LeastSquares, MinMax, Uniform
from qvlm_lightning.nn.changes import as_stored
from qvlm_lightning.nn.weight_quantizer import WeightQuantizer
from qvlm_lightning.quant.scheme import Scheme
from tests.methods.test_site_statistics import block_of

W3 = Scheme.parse("w3a4")


@pytest.fixture
def block(calibrated):
    return block_of(calibrated(W3))


@pytest.fixture
def other(block):
    """A decision for the weights of all layers: half of what they are."""
    found = Decision()
    for site in block.sites:
        for name, linear in site.linears.items():
            low, high = linear.weight.amin(1) / 2, linear.weight.amax(1) / 2
            ranges = low[:, None, None], high[:, None, None]
            found |= block.decide_weight(name, linear.weight / 2, *ranges)
    return found


def fresh(block, decision):
    """J of a decision with nothing kept."""
    block.judged.clear()
    for site in block.sites:
        site.forget_inputs()
        for linear in site.linears.values():
            linear.forget()
    return block.error(decision)


def test_what_was_judged_last_is_not_run_again(block, other):
    start, run = block.error(), block.cost.layer_forwards
    assert run == len(block.x_q) * len(block.units)
    assert block.error(Decision()) == start
    assert block.cost.layer_forwards == run
    halved = block.error(other)
    assert halved != start
    assert block.error(Decision(dict(other.tensors))) == halved
    assert block.cost.layer_forwards == 2 * run
    # of several the better one is known
    assert block.errors([other, None]).tolist() == [halved, start]
    assert block.cost.layer_forwards == 3 * run
    assert block.error() == min(start, halved) == start
    assert block.cost.layer_forwards == 3 * run


@pytest.mark.parametrize("change", ["tensor", "copy", "objective", "weights", "fewer"])
def test_anything_that_changes_j_is_noticed(block, other, change):
    block.token_weights = Uniform()
    known, run = block.error(other), block.cost.layer_forwards
    name = next(name for name in other.tensors if name.endswith(".weight"))
    if change == "tensor":
        other.tensors[name].mul_(0.5)
    elif change == "copy":
        other.tensors[name] = other.tensors[name] * 0.5
    elif change == "objective":
        block.objective = "plain"
    elif change == "weights":
        block.token_weights = ByKind(vision=0.1)
        for call in block.x_q:
            call.kind = torch.arange(call.mask.numel()).reshape(call.mask.shape) % 3
    else:
        del other.tensors[name]
    now = block.error(other)
    assert block.cost.layer_forwards == 2 * run
    assert now != known
    assert now == fresh(block, other)


def test_a_decisions_weights_are_quantized_once_for_all_batches(block, other, monkeypatch):
    seen, before = [], WeightQuantizer.forward
    monkeypatch.setattr(
        WeightQuantizer, "forward", lambda self, w: seen.append(self) or before(self, w)
    )
    linears = [linear for site in block.sites for linear in site.linears.values()]
    assert len(block.x_q) > 1
    block.error(other)
    assert len(seen) == len(linears)
    block.errors([other, None])
    assert len(seen) == 2 * len(linears)


def test_kept_weights_are_those_of_the_decision_that_runs(block, other):
    names = [name for name in other.tensors if name.endswith(".weight")]
    draw, expected = random.Random(0), {None: fresh(block, None), "halves": fresh(block, other)}
    assert len(set(expected.values())) == 2
    for _ in range(12):
        block.judged.clear()
        # gone at once, so that another tensor may take its place in memory
        factor = draw.choice([None, 1.0, 0.25])
        if factor is None:
            assert block.error() == expected[None]
            continue
        scaled = Decision({n: x * factor if n in names else x for n, x in other.tensors.items()})
        found = block.error(scaled)
        assert found == fresh(block, scaled)
        assert (found == expected["halves"]) == (factor == 1.0)


def test_a_rounded_tensor_is_the_same_until_its_value_changes(block, other):
    name = next(name for name in other.tensors if name.endswith(".weight"))
    block.stored = {name: torch.bfloat16}
    first = block.decided(other)[name]
    assert torch.equal(first, as_stored(other.tensors, block.stored)[name])
    assert not torch.equal(first, other.tensors[name])
    assert block.decided(other)[name] is first
    other.tensors[name].add_(0.3)
    assert torch.equal(block.decided(other)[name], as_stored(other.tensors, block.stored)[name])
    learned = other.tensors[name].clone().requires_grad_()
    assert block.decided(Decision({name: learned}))[name].requires_grad


def test_a_chain_judges_no_decision_twice(calibrated):
    steps = [MinMax(), GPTQ(ranges=LeastSquares())]
    block = block_of(calibrated(W3), method=Chain(steps))
    decision = Chain(steps).solve(block)
    assert decision.scores["chain"] == decision.scores["gptq"] == fresh(block, decision)
    counted = block.cost.layer_forwards
    alone = block_of(calibrated(W3), method=steps[1])
    steps[1].solve(alone)
    per_pass = len(block.x_q) * len(block.units)
    # rounding to the nearest is judged by the first step, and nothing behind the second one
    assert counted - per_pass == alone.cost.layer_forwards + per_pass

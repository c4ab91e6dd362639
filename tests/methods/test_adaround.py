"""Weights that learn which way they are rounded, on the output of a block."""

import pytest
import torch

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import AdaRound, ByKind, Chain, Decision, LearnedTransforms, adaround
from qvlm_lightning.nn.weight_quantizer import exact_weights
from qvlm_lightning.quant.rounding import Annealing
from qvlm_lightning.quant.scheme import Scheme
from tests.calibration.conftest import ToyFamily, build_toy
from tests.methods.test_changing_weights import TOWERS, same, weights
from tests.methods.test_site_statistics import block_of

W3 = Scheme.parse("w3a8")


def quantizers(block):
    """Of the layers of a block, by name."""
    return {n: x.weight_quantizer for site in block.sites for n, x in site.linears.items()}


@pytest.mark.parametrize("symmetric", [False, True])
def test_every_weight_becomes_the_value_below_or_above(calibrated, symmetric):
    scheme = Scheme.parse("w3a8", weight_symmetric=symmetric, group_size=8)
    block = block_of(calibrated(scheme), method=AdaRound())
    decision, ups = AdaRound(steps=3).solve(block), 0
    least, most = (-4, 3) if symmetric else (0, 7)
    for name in quantizers(block):
        before, after = block.tensor(f"{name}.weight"), decision.tensors[f"{name}.weight"]
        low, high = (decision.tensors[f"{name}.weight_quantizer.{x}"] for x in ("low", "high"))
        for row in range(0, len(before), 5):
            for column in range(0, before.shape[1], 3):
                ends = (float(x[row, column // 8, 0]) for x in (low, high))
                bottom, top = (edge(x, 0.0) for edge, x in zip((min, max), ends, strict=True))
                scale = top / 3.5 if symmetric else (top - bottom) / 7
                zero = 0 if symmetric else round(-bottom / scale)
                exact, code = (float(x[row, column]) / scale for x in (before, after))
                assert code == pytest.approx(round(code), abs=1e-3)
                down = exact // 1
                clipped = [min(max(c, least - zero), most - zero) for c in (down, down + 1)]
                assert round(code) in clipped
                ups += round(code) != round(exact)
    assert ups, "nothing is rounded away from the nearest value"
    assert decision.scores["adaround"] == block.error(decision)
    assert decision.scores["adaround"] <= decision.scores["start"]
    assert decision.scores["start"] < 1.5 * decision.scores["minmax"], "it starts from the nearest"


def test_before_the_first_step_nothing_is_rounded(calibrated):
    """The soft weight is the weight itself, as long as its range holds it."""
    block = block_of(calibrated(W3), method=AdaRound())
    ranges = Decision()
    for name, own in quantizers(block).items():
        weight = block.tensor(f"{name}.weight")
        low = weight.amin(1).reshape(own.shape) * 3
        high = weight.amax(1).reshape(own.shape) * 3
        ranges |= block.decide_weight(name, weight, low, high)
    ranges = Decision({n: x for n, x in ranges.tensors.items() if not n.endswith(".weight")})
    block.given = ranges
    learned = adaround._Learned(block)
    soft = learned.decision()
    for name in quantizers(block):
        weight = block.tensor(f"{name}.weight")
        torch.testing.assert_close(soft.tensors[f"{name}.weight"], weight, rtol=1e-4, atol=1e-5)
        assert torch.equal(soft.tensors[f"{name}.weight_quantizer.low"], block.tensor(
            f"{name}.weight_quantizer.low"
        ))  # fmt: skip
    with exact_weights(quantizers(block).values()):
        inside, exact = block.errors([soft, None]).tolist()
    assert inside == pytest.approx(exact, rel=1e-3)
    assert block.error(soft) > 2 * inside, "outside, weights are rounded"


def test_the_penalty_is_that_of_a_loop(calibrated):
    block = block_of(calibrated(W3), method=AdaRound())
    learned, annealing = adaround._Learned(block), Annealing(steps=10, weight=3.0)
    penalty = learned.penalty(annealing)
    assert [float(penalty(step)) for step in (0, 1)] == [0.0, 0.0]
    for step, beta in ((2, 20.0), (6, 11.0), (10, 2.0)):
        total = count = 0
        for free in learned.free.values():
            for value in free.detach().double().flatten().tolist():
                h = min(max(1.2 / (1 + 2.718281828459045**-value) - 0.1, 0.0), 1.0)
                total += 1 - abs(2 * h - 1) ** beta
                count += 1
        assert float(penalty(step)) == pytest.approx(3.0 * total / count, rel=1e-3)


@pytest.mark.parametrize(("weight", "least", "most"), [(0.0, 0.0, 0.7), (20.0, 0.8, 1.0)])
def test_the_regularizer_decides_the_shares(calibrated, monkeypatch, weight, least, most):
    learned = []

    class Kept(adaround._Learned):
        def __init__(self, block):
            super().__init__(block)
            learned.append(self)

    monkeypatch.setattr(adaround, "_Learned", Kept)
    block = block_of(calibrated(W3), method=AdaRound())
    AdaRound(steps=80, lr=0.3, weight=weight).solve(block)
    free = torch.cat([x.detach().flatten() for x in learned[0].free.values()])
    share = adaround.raised(free)
    assert least <= float(((share < 0.05) | (share > 0.95)).float().mean()) <= most


def test_layers_of_a_block_are_learned_together(calibrated):
    """Rounding in the first layer is judged at the output of the second one."""
    block = block_of(calibrated(W3), method=AdaRound())
    assert len(block.units) == 2
    learned = adaround._Learned(block)
    first = [x for n, x in learned.free.items() if n.startswith(f"{block.units[0].name}.")]
    assert 0 < len(first) < len(learned.free)
    with torch.enable_grad(), exact_weights(quantizers(block).values()):
        block.loss(0, learned.decision()).backward()
    assert all(bool(x.grad.abs().sum() > 0) for x in first)


def test_a_partition_says_which_layers(calibrated):
    started = calibrated(W3)
    started.state.partition["language"] = [[0, 2], [3, 3]]
    started.search(["language"], AdaRound(steps=2), "a")
    assert len(started.state.objective) == 2
    assert len(started.structure.changes) == len(
        [x for s in started.structure.towers["language"].sites for x in s.linears]
    )


def test_ranges_that_a_chain_has_decided_are_kept(calibrated):
    started = calibrated(Scheme.parse("w3a4", activation_mode="dynamic_token"))
    learned, rounded = LearnedTransforms(steps=2, clip_lr=0.1), AdaRound(steps=2)
    chain = Chain([learned, rounded])
    started.prepare(chain)
    started.search(["language"], chain, "a")
    assert {"flatquant", "start", "adaround"} <= set(started.state.objective[0])
    block = block_of(started, method=learned)
    given = learned.solve(block)
    block.given = given
    found = rounded.solve(block)
    for name in quantizers(block):
        for end in ("low", "high"):
            own = f"{name}.weight_quantizer.{end}"
            torch.testing.assert_close(found.tensors[own], given.tensors[own])


@pytest.mark.parametrize(
    ("dtype", "kv_heads"),
    [(torch.bfloat16, 1), pytest.param(torch.float16, 2, marks=pytest.mark.slow)],
)
def test_half_types_and_grouped_queries(toy_batches, dtype, kv_heads):
    model = build_toy(kv_heads=kv_heads).to(dtype)
    started = Calibrator(model, ToyFamily(), W3, toy_batches, toy_batches[:2])
    started.collect()
    started.search(TOWERS, AdaRound(steps=2), "a")
    for name, found in weights(started).items():
        assert found.isfinite().all() or "_quantizer" in name, name
    assert all(o["adaround"] <= o["start"] for o in started.state.objective)


@pytest.mark.slow
def test_a_resumed_run_is_the_same(calibrated, tmp_path):
    runs = []
    for _ in range(2):
        started = calibrated(W3, folder=tmp_path)
        started.search(TOWERS, AdaRound(steps=2), "a")
        runs.append((weights(started), started.state.objective))
        sorted(tmp_path.glob("a-*.safetensors"))[3].unlink()
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_parts_without_quantized_weights_keep_theirs(calibrated):
    started = calibrated(Scheme.parse("vision-w16a4_projector-w16a4_language-w4a16"))
    started.search(TOWERS, AdaRound(steps=1, clip_lr=0.0), "a")
    assert all("language" in name for name in started.structure.changes)


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="steps 0 is not allowed"):
        AdaRound(steps=0)
    with pytest.raises(InputError, match=r"lr 0.0, clip_lr 0.005 and weight 20.0 are not"):
        AdaRound(lr=0.0)
    with pytest.raises(InputError, match="weight -1"):
        AdaRound(weight=-1)
    with pytest.raises(InputError, match="adaround decides quantized weights"):
        AdaRound().check(Scheme.parse("w16a4"))
    assert AdaRound(token_weights=ByKind()).settings()["steps"] == 200

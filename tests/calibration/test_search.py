"""Search invariants S1-S12 (docs/paper.md) on a random LLaVA."""

import itertools

import pytest
import torch
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import Decision, JointSearch, MinMax, SequentialSearch, prefix_tree
from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.grid import percentile_grid
from qvlm_lightning.methods.percentile import best
from qvlm_lightning.methods.prefix_tree import exhaustive_table
from qvlm_lightning.methods.search_cost import Cost
from qvlm_lightning.nn.replay import run_candidates
from qvlm_lightning.quant.scheme import Scheme

GRID = [1.0, 0.995, 0.99, 0.985, 0.98]


def block_of(
    calibrator, tower="language", first=0, last=1, percentiles=GRID, objective="normalized"
) -> Block:
    owner = calibrator.structure.towers[tower]
    calibrator.structure.enable(False)
    (calls,) = calibrator.passes.calls(owner, calibrator.search_batches, [set()])
    calibrator.structure.enable(True, {tower})
    method = SequentialSearch(percentiles, objective=objective)
    return calibrator.blocks.block(owner, first, last, calls, calls, method)


def choice_of(block: Block, decision: Decision) -> torch.Tensor:
    """The index of the percentile that a decision names for every site."""
    names = [f"{next(iter(s.linears))}.input_quantizer.percentile" for s in block.sites]
    chosen = [float(decision.tensors[name]) for name in names]
    return torch.tensor([block.percentiles.index(percentile) for percentile in chosen])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("per", ["site", "layer"])
@pytest.mark.parametrize("objective", ["normalized", "plain"])
def test_s1_joint_is_never_worse_than_sequential_or_minmax(calibrated, seed, per, objective):
    block = block_of(calibrated(seed=seed), objective=objective)
    scores = JointSearch(per=per).solve(block).scores
    assert scores["joint"] <= scores["sequential"]
    assert scores["joint"] <= scores["minmax"]


@pytest.mark.parametrize("seed", range(3))
def test_s2_a_block_of_one_layer_with_one_percentile_joint_equals_sequential(calibrated, seed):
    block = block_of(calibrated(seed=seed), first=1, last=1)
    joint, sequential = (m(per="layer").solve(block) for m in (JointSearch, SequentialSearch))
    assert torch.equal(choice_of(block, joint), choice_of(block, sequential))
    assert joint.scores["joint"] == pytest.approx(sequential.scores["sequential"], rel=1e-6)


@pytest.mark.parametrize("method", [SequentialSearch, JointSearch])
def test_s3_one_candidate_returns_minmax(calibrated, method):
    calibrator = calibrated()
    block = block_of(calibrator, percentiles=[1.0])
    solution = method([1.0]).solve(block)
    assert choice_of(block, solution).eq(0).all()
    assert list(solution.scores.values())[-1] == solution.scores["minmax"]


def test_s4_more_candidates_never_hurt(calibrated):
    calibrator = calibrated()
    few = JointSearch([1.0, 0.99], per="layer").solve(block_of(calibrator, percentiles=[1.0, 0.99]))
    many = JointSearch([1.0, 0.99, 0.98], per="layer").solve(
        block_of(calibrator, percentiles=[1.0, 0.99, 0.98])
    )
    assert many.scores["joint"] <= few.scores["joint"] * (1 + 1e-9)


def brute_force(block: Block, choice: torch.Tensor) -> float:
    """J of one assignment with ordinary ranges, layer by layer, summed in float64."""
    tables = [t for unit in block.tables for t in unit]
    for site, index, (low, high) in zip(block.sites, choice.tolist(), tables, strict=True):
        site.quantizer.set_range(low[index], high[index], 1.0)
    numerator = denominator = 0.0
    for call, target in zip(block.x_q, block.targets, strict=True):
        hidden = call.hidden
        for unit in block.units:
            hidden = unit.module(hidden, *call.args, **call.kwargs)
        error = (hidden.double() - target.double()).square()
        mask = torch.ones(error.shape[:2], dtype=torch.bool) if call.mask is None else call.mask
        numerator += float(error[mask].sum())
        denominator += int(mask.sum()) * error.shape[-1]
    return numerator / denominator


def test_s5_prefix_tree_equals_brute_force(calibrated):
    block = block_of(calibrated(), last=1, objective="plain")
    options = JointSearch(per="layer")._options(block)
    table, choices = exhaustive_table(block, options)
    slow = [brute_force(block, choice) for choice in choices]
    assert choices.tolist() == [[a] * 4 + [b] * 4 for a, b in itertools.product(range(5), repeat=2)]
    assert table.tolist() == pytest.approx(slow, rel=1e-5)


def test_no_more_candidates_are_stacked_than_there_are_percentiles(calibrated, monkeypatch):
    """The plan of memory counts on it: of one unit's sites all combinations would not fit."""
    block = block_of(calibrated(), objective="plain", percentiles=[1.0, 0.98])
    options = [torch.tensor([[a, b, a, b] for a in (0, 1) for b in (0, 1)] + [[0, 1, 1, 1]])]
    options *= len(block.units)
    stacked: list[int] = []

    def count(unit, hidden, call, tables, choice, tensors):
        stacked.append(hidden.shape[0] // call.hidden.shape[0])
        return run_candidates(unit, hidden, call, tables, choice, tensors)

    monkeypatch.setattr(prefix_tree, "run_candidates", count)
    table, choices = exhaustive_table(block, options)
    assert max(stacked) == 2
    slow = [brute_force(block, choice) for choice in choices]
    assert table.tolist() == pytest.approx(slow, rel=1e-5)


def test_the_normalized_objective_is_that_of_normalized_outputs(calibrated):
    block = block_of(calibrated(), last=1)
    solution = JointSearch().solve(block)
    choice = choice_of(block, solution)
    hidden = [call.hidden for call in block.x_q]
    for unit in range(2):
        hidden = block.advance(hidden, unit, choice[block.columns(unit)])
    numerator = denominator = 0.0
    for call, out, target in zip(block.x_q, hidden, block.targets, strict=True):
        a, b = (
            x.double() / (x.double().square().mean(-1, keepdim=True)).sqrt() for x in (out, target)
        )
        kept = call.mask if call.mask is not None else torch.ones(a.shape[:2], dtype=torch.bool)
        numerator += float((a - b).square().sum(-1)[kept].sum())
        denominator += int(kept.sum()) * a.shape[-1]
    assert solution.scores["joint"] == pytest.approx(numerator / denominator, rel=1e-4)


def test_s5_stacked_candidates_equal_single_ones(calibrated):
    block = block_of(calibrated(), last=1, objective="plain")
    choices = torch.randint(5, (6, 8), generator=torch.Generator().manual_seed(0))
    slow = [brute_force(block, choice) for choice in choices]
    assert block.candidate_errors(choices).tolist() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize(("last", "expected"), [(0, 5), (1, 5 + 25), (2, 5 + 25 + 125)])
def test_s6_layer_forwards_of_the_tree(calibrated, last, expected):
    block = block_of(calibrated(), last=last)
    block.cost = Cost()
    exhaustive_table(block, JointSearch(per="layer")._options(block))
    assert block.cost.layer_forwards == expected * len(block.x_q)


def test_s7_objective_adds_up_over_batches_by_numerator_and_denominator(calibrated):
    block = block_of(calibrated())
    choices = torch.tensor([[1] * 8])
    whole = float(block.candidate_errors(choices)[0])
    parts = []
    for index in range(len(block.x_q)):
        part = Block(
            block.units,
            block.x_fp[index : index + 1],
            block.x_q[index : index + 1],
            block.targets[index : index + 1],
            block.percentiles,
            block.tables,
        )
        weight = int(block.x_q[index].mask.sum())
        parts.append((float(part.candidate_errors(choices)[0]) * weight, weight))
    assert whole == pytest.approx(sum(p for p, _ in parts) / sum(w for _, w in parts), rel=1e-6)


def test_s8_sixteen_bits_leave_nothing_to_choose(calibrated):
    calibrator = calibrated()
    block = block_of(calibrator, objective="plain")
    for site in block.sites:  # 16 means "off" to the scheme; here it is a real 16-bit quantizer
        for linear in site.linears.values():
            linear.enabled = False
        site.quantizer.num_bits = 15
    power = torch.stack([t.double().square().mean() for t in block.targets]).mean()
    assert float(block.candidate_errors(torch.zeros(1, 8, dtype=torch.int64))[0]) < 1e-6 * power


def test_s9_committing_a_block_alters_neither_targets_nor_earlier_blocks(calibrated):
    calibrator = calibrated()
    calibrator.state.partition["language"] = [[0, 1], [2, 3]]
    before = block_of(calibrator, first=2, last=3).targets
    calibrator.search(["language"], SequentialSearch(), "a")
    ranges = {
        s.name: s.quantizer.high.clone() for s in calibrator.structure.towers["language"].sites[:8]
    }
    after = block_of(calibrator, first=2, last=3).targets
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    calibrator.search(["language"], SequentialSearch(), "b")
    for site in calibrator.structure.towers["language"].sites[:8]:
        assert torch.equal(site.quantizer.high, ranges[site.name])


def test_s10_ded_is_not_negative(calibrated):
    from qvlm_lightning.methods.proxies import DiscretizationErrorDifference

    calibrator = calibrated()
    calibrator.repartition(
        ["language"], DiscretizationErrorDifference(JointSearch(per="layer")), threshold=0.0
    )
    assert len(calibrator.state.dependency["language"]) == 3
    assert all(d >= 0 for d in calibrator.state.dependency["language"])


class Gain(nn.Module):
    """A layer whose input is one site and whose output is a Linear of it."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        self.linear.weight.data = torch.tensor(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_s11_planted_dependency_joint_beats_sequential():
    """Two layers of one site each; a table of ranges in which the second undoes a clip of the
    first."""
    from qvlm_lightning.nn.linear import QuantLinear
    from qvlm_lightning.nn.quantizer import ActivationQuantizer
    from qvlm_lightning.nn.replay import UnitInput
    from qvlm_lightning.nn.structure import Site, Unit

    units = []
    for name, weight in (("a", [[1.0, 0.0], [0.0, 1.0]]), ("b", [[1.0, -1.0], [0.0, 0.0]])):
        quantizer = ActivationQuantizer(2, "static_tensor", (), 1)
        module = Gain(weight)
        module.linear = QuantLinear.from_linear(module.linear, quantizer, True, 16, None, False)
        module.linear.enabled = quantizer.enabled = True
        units.append(Unit(name, module, [Site(name, quantizer, {name: module.linear})]))
    x = torch.tensor([[[8.0, 8.0], [1.0, 0.0]]])
    exact = x @ units[1].module.linear.weight.T
    # Sequential keeps the 8 (its own error is large when clipped); for the difference of the two
    # channels the
    # common 8 does not matter, only the fine step does.
    table = (torch.tensor([0.0, 0.0]), torch.tensor([9.0, 3.0]))
    tables = [[table], [table]]
    # planted in lengths, so that the plain error is what shows it
    block = Block(units, [UnitInput(x)], [UnitInput(x)], [exact], [1.0, 0.99], tables)
    block.objective = "plain"
    method = JointSearch([1.0, 0.99], per="layer")
    solution = method.solve(block)
    assert choice_of(block, solution).tolist() == [1, 1]
    assert method.sequential.choose(block).tolist() == [0, 0]
    assert solution.scores["joint"] == 0.0 < solution.scores["sequential"]


def test_s12_ties_go_to_the_larger_percentile():
    scores = torch.tensor([3.0, 1.0, 1.0, 2.0])
    assert best(scores) == 1
    choices = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    assert best(scores, choices) == 2


def test_a_nan_objective_is_not_taken_for_a_minimum():
    with pytest.raises(FloatingPointError, match="not finite"):
        best(torch.tensor([float("nan"), 1.0]))


def test_coordinate_descent_reaches_a_point_no_single_change_improves(calibrated):
    block = block_of(calibrated(), last=0)
    solution = JointSearch(exhaustive_limit=1).solve(block)
    for column in range(4):
        choices = choice_of(block, solution).repeat(5, 1)
        choices[:, column] = torch.arange(5)
        assert block.candidate_errors(choices).min() >= solution.scores["joint"] * (1 - 1e-6)


def test_a_search_found_again_on_disk_gives_the_same_ranges(calibrated, tmp_path, monkeypatch):
    first, second = calibrated(folder=tmp_path), calibrated(folder=tmp_path)
    first.search(["vision", "projector", "language"], JointSearch(), "epoch0")
    monkeypatch.delattr(JointSearch, "solve")  # nothing is decided again
    second.search(["vision", "projector", "language"], JointSearch(), "epoch0")
    assert first.state.percentiles == second.state.percentiles
    assert first.state.objective == second.state.objective
    assert second.state.passes == first.state.passes  # with what the decisions cost once
    for a, b in zip(first.structure.sites, second.structure.sites, strict=True):
        assert torch.equal(a.quantizer.high, b.quantizer.high)


def test_minmax_finds_no_use_for_the_files_of_another_method(calibrated, tmp_path):
    first, second = calibrated(folder=tmp_path), calibrated(folder=tmp_path)
    first.search(["language"], JointSearch(), "epoch0")
    second.search(["language"], MinMax(), "epoch0")
    assert set(second.state.percentiles.values()) == {1.0}


@pytest.mark.parametrize("mode", ["static_tensor", "static_channel", "dynamic_token"])
def test_every_activation_mode_searches(calibrated, mode):
    calibrator = calibrated(Scheme.parse("w4a4", activation_mode=mode))
    calibrator.search(["vision", "projector", "language"], SequentialSearch(), "epoch0")
    assert len(calibrator.state.percentiles) == len(calibrator.structure.sites)
    calibrator.structure.enable(True)
    output = calibrator.model(
        **{
            k: v
            for k, v in calibrator.batches[0].items()
            if k in ("input_ids", "attention_mask", "pixel_values")
        }
    )
    assert output.logits.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.4, 0.1), "0.4"),
        ((1.1, 0.9, 0.1), "1.1"),
        ((0.9, 0.95, 0.01), "empty"),
        ((1.0, 0.9, 0.0), "positive"),
    ],
)
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        percentile_grid(*arguments)

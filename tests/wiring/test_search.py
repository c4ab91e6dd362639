"""The search against plain loops: quantized prefix, full-precision target, masks (eq. 1-3)."""

from typing import Any

import pytest
import torch

from qvlm_lightning.methods import JointSearch, MinMax, SequentialSearch
from qvlm_lightning.methods.grid import PAPER_GRID, percentile_grid
from qvlm_lightning.quant.scheme import Scheme
from tests.wiring.plain import LINEARS, TOWERS, UNITS, tables
from tests.wiring.searching import PlainSearch

SINGLE = {tower: [[i, i] for i in range(len(units))] for tower, units in UNITS.items()}
PAIRS = {"vision": [[0, 1]], "projector": [[0, 0]], "language": [[0, 1], [2, 3]]}
MIXED = {"vision": [[0, 1]], "projector": [[0, 0]], "language": [[0, 0], [1, 1], [2, 3]]}
DEEP = {"vision": [[0, 1]], "projector": [[0, 0]], "language": [[0, 0], [1, 3]]}


GRID = percentile_grid(1.0, 0.9, 0.0125)


def test_the_grid_of_the_paper():
    assert PAPER_GRID == [1.0, 0.995, 0.99, 0.985, 0.98]
    assert GRID[-1] == 0.9
    assert len(GRID) == 9


def compare(calibrator: Any, search: PlainSearch, objective: Any, grid: list[float]) -> None:
    state = calibrator.state
    assert state.percentiles == {site: grid[i] for site, i in search.chosen.items()}
    assert set(state.percentiles) == set(LINEARS)
    for found, expected in zip(state.objective, objective, strict=True):
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-5), name
    for site in calibrator.structure.sites:
        low, high = search.tables[site.name][search.chosen[site.name]]
        torch.testing.assert_close(site.quantizer.low, low, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(site.quantizer.high, high, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("seed", "blocks", "objective"),
    [(0, SINGLE, "normalized"), (1, DEEP, "plain")],
    ids=["single", "deep"],
)
def test_sequential_search_is_that_of_plain_loops(
    calibrated, plain, toy_batches, seed, blocks, objective
):
    """The choice is the same whatever the blocks, but in a block it goes another way."""
    method = SequentialSearch(GRID, objective=objective)
    calibrator, model = calibrated(seed), plain(seed)
    calibrator.state.partition.update(blocks)
    calibrator.search(TOWERS, method, "first")
    ranges = tables(model, toy_batches, GRID)
    normalized = objective == "normalized"
    search = PlainSearch(model, toy_batches[:2], ranges, len(GRID), normalized)
    compare(calibrator, search, search.run(blocks), GRID)
    assert len(set(search.chosen.values())) > 2  # something was chosen


@pytest.mark.parametrize(("mode", "low"), [("static_channel", 0.98), ("dynamic_token", 0.7)])
def test_sequential_search_in_every_mode_is_that_of_plain_loops(
    calibrated, plain, toy_batches, mode, low
):
    """Ranges per channel, per position in the tower; clip ratios on the absmax of a token."""
    grid = percentile_grid(1.0, low, (1 - low) / 4)
    method = SequentialSearch(grid, grid)
    calibrator = calibrated(scheme=Scheme.parse("w4a4", activation_mode=mode))
    calibrator.search(TOWERS, method, "first")
    model = plain(mode=mode)
    search = PlainSearch(model, toy_batches[:2], tables(model, toy_batches, grid), len(grid))
    compare(calibrator, search, search.run(SINGLE), grid)
    assert len(set(search.chosen.values())) > 2  # something was chosen


@pytest.mark.parametrize("objective", ["normalized", "plain"])
def test_sequential_search_per_layer_is_that_of_plain_loops(
    calibrated, plain, toy_batches, objective
):
    method = SequentialSearch(GRID, per="layer", objective=objective)
    calibrator, model = calibrated(), plain()
    calibrator.state.partition.update(PAIRS)
    calibrator.search(TOWERS, method, "first")
    grid = method.percentiles
    found = tables(model, toy_batches, grid)
    search = PlainSearch(model, toy_batches[:2], found, len(grid), objective == "normalized")
    compare(calibrator, search, search.run(PAIRS, per="layer"), grid)


@pytest.mark.parametrize(
    ("per", "limit", "blocks"), [("layer", 155, DEEP), ("site", 80, MIXED), ("layer", 3, DEEP)]
)
def test_joint_search_is_that_of_plain_loops(calibrated, plain, toy_batches, per, limit, blocks):
    """All combinations per layer, coordinate descent per site, and that per layer."""
    method = JointSearch([1.0, 0.97, 0.94], per=per, exhaustive_limit=limit)
    calibrator, model = calibrated(), plain()
    calibrator.state.partition.update(blocks)
    calibrator.search(TOWERS, method, "first")
    grid = method.percentiles
    search = PlainSearch(model, toy_batches[:2], tables(model, toy_batches, grid), len(grid))
    compare(calibrator, search, search.run(blocks, per=per, joint=True, limit=limit), grid)


def test_minmax_reports_the_error_of_the_quantized_chain(calibrated, plain, toy_batches):
    calibrator, model = calibrated(), plain()
    calibrator.state.partition.update(PAIRS)
    calibrator.search(TOWERS, MinMax(), "first")
    search = PlainSearch(model, toy_batches[:2], tables(model, toy_batches, [1.0]), 1)
    objective = [{"minmax": o["minmax"]} for o in search.run(PAIRS)]
    compare(calibrator, search, objective, [1.0])


def test_a_later_pass_searches_the_decoder_behind_the_towers_as_they_stand(
    calibrated, plain, toy_batches
):
    """The tower's ranges of the first pass, and of the decoder only those of the second."""
    first, second = (
        SequentialSearch(GRID),
        JointSearch([1.0, 0.95, 0.9], per="layer"),
    )
    calibrator, model = calibrated(), plain()
    calibrator.search(TOWERS, first, "first")
    calibrator.state.partition["language"] = PAIRS["language"]
    calibrator.search(["language"], second, "second")
    grid = first.percentiles
    search = PlainSearch(model, toy_batches[:2], tables(model, toy_batches, grid), len(grid))
    search.run({tower: SINGLE[tower] for tower in ("vision", "projector")})
    again = tables(model, toy_batches, second.percentiles)
    search.tables = search.tables | {s: x for s, x in again.items() if "language_model" in s}
    search.count = len(second.percentiles)
    search.run({"language": PAIRS["language"]}, per="layer", joint=True)
    for site, index in search.chosen.items():
        used = second.percentiles if "language_model" in site else grid
        assert calibrator.state.percentiles[site] == used[index], site

"""Costs that are expected of a search, against those that it counts."""

import pytest

from qvlm_lightning.estimate.cost import expected_layer_forwards
from qvlm_lightning.methods import JointSearch, MinMax, SequentialSearch
from qvlm_lightning.methods.grid import PAPER_GRID


def test_by_hand():
    # targets and the way on: 2 each; sequential: exact and four quantized site inputs, one way on
    # and five candidates at one site after another, worth a layer each; two objectives
    assert expected_layer_forwards(MinMax(), [4]) == 2 + 1
    assert expected_layer_forwards(SequentialSearch(PAPER_GRID), [4]) == 2 + (2 + 4 + 1 + 5) + 2
    # 5 + 25 combinations instead of a descent, one percentile per layer
    per_layer = JointSearch(PAPER_GRID, per="layer")
    assert expected_layer_forwards(per_layer, [4, 4]) == 4 + 2 * (2 + 1 + 5) + (5 + 25) + 6


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("per", ["site", "layer"])
def test_near_what_a_search_counts(start, build, toy_batches, depth, per):
    calibrator = start(build(), toy_batches)
    calibrator.state.partition["language"] = [[0, depth - 1]]
    method = JointSearch(PAPER_GRID, per=per)
    calibrator.search(["language"], method, "x")
    counted = calibrator.state.passes[-1]["layer_forwards"] / 2  # two search batches
    expected = expected_layer_forwards(method, [4] * depth)
    assert 0.6 < counted / expected < 1.5

"""Figures with their intervals, counted by hand; both tables are made of them."""

import numpy as np
import pytest

from qvlm_lightning.metrics.intervals import bootstrap_interval, wilson_interval
from qvlm_lightning.results.compare import compare
from qvlm_lightning.results.entries import Entry
from qvlm_lightning.results.report import report_rows
from qvlm_lightning.results.rows import (
    difference,
    figure,
    mean,
    rate,
    right_or_wrong,
    score,
    units,
)


def bounds(row):
    return row["ci_low"], row["ci_high"]


def test_a_figure_without_an_interval():
    assert figure("seconds", 2.0, None, 3) == {
        **{"metric": "seconds", "value": 2.0, "ci_low": None, "ci_high": None, "n": 3}
    }


def test_right_or_wrong_has_wilsons_interval_and_points_in_between_the_bootstraps():
    row = score("score", np.array([10, 10, 0, 10]), binary=True)
    assert (row["metric"], row["value"], row["n"]) == ("score", 75.0, 4)
    assert bounds(row) == tuple(100 * x for x in wilson_interval(3, 4))
    assert bounds(score("score", np.array([10] * 4), binary=False)) == (100.0, 100.0)
    row = score("score", np.array([10, 3, 0, 6]), binary=False)
    assert row["value"] == 47.5
    assert bounds(row) == pytest.approx([10 * x for x in bootstrap_interval([10, 3, 0, 6])])


@pytest.mark.parametrize(("points", "binary"), [([0, 10], True), ([0, 9], False), ([], True)])
def test_which_points_are_right_or_wrong(points, binary):
    assert right_or_wrong(np.array(points)) is binary


def test_a_rate_and_a_mean():
    row = rate("agreement", np.array([True, False, True, True, True]))
    assert (row["value"], row["n"]) == (80.0, 5)
    assert bounds(row) == tuple(100 * x for x in wilson_interval(4, 5))
    row = mean("kl", np.array([0.5, 0.25]))
    assert (row["value"], row["n"]) == (0.375, 2)
    assert 0.25 <= row["ci_low"] <= row["value"] <= row["ci_high"] <= 0.5


@pytest.mark.parametrize("whole", [1, 10])
def test_a_difference_is_that_of_shares(whole):
    mine, theirs = whole * np.array([1, 1, 1, 0]), whole * np.array([0, 0, 1, 1])
    row = difference("accuracy_minus_fp", mine, theirs, whole)
    assert (row["value"], row["n"]) == (25.0, 4)
    assert (row["won"], row["lost"]) == (2, 1)
    assert row["p_value"] == pytest.approx(2 * (1 / 8 + 3 / 8) - 3 / 8)  # 2 against 1, mid-p
    assert -100 <= row["ci_low"] < 25 < row["ci_high"] <= 100


def test_of_a_cluster_the_worst_counts_once():
    points, clusters = np.array([10, 3, 0, 10]), ["a", "a", "", ""]
    assert units(points, clusters, np.array([0, 1, 3])).tolist() == [3, 10]
    assert units(points, clusters, np.array([2, 0])).tolist() == [0, 10]
    assert units(points, [""] * 4, np.array([1, 2])).tolist() == [3, 0]


def test_both_tables_say_the_same_of_the_same_answers(answered, known):
    full, rounded = answered("fp", "red", "blue", "A", "C"), answered("rtn", "blue", "red", "A", "")
    rows = {r["metric"]: r for r in report_rows(known(full, rounded)) if r["task"] == "overall"
            and r["method"] == "rtn"}  # fmt: skip
    (compared,) = compare([Entry("fp", full, "fp"), Entry("rtn", rounded, "rtn")])
    names = {"accuracy": "score", "agreement": "agreement", "parse_failures": "parse_failures",
             "accuracy_minus_fp": "difference", "kl": "kl"}  # fmt: skip
    for mine, theirs in names.items():
        row = compared.find(theirs, "rtn")
        for key in ("value", "ci_low", "ci_high", "n"):
            assert rows[mine][key] == pytest.approx(row[key], rel=1e-6, abs=1e-9), (mine, key)

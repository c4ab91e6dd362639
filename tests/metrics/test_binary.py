"""Yes-no counts and the area under the ROC curve."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from qvlm_lightning.metrics.binary import BinaryCounts, BinaryTable, auroc

ROWS = st.lists(
    st.tuples(
        st.sampled_from([True, False, None]),
        st.booleans(),
        st.sampled_from([("a",), ("b",), ("a", "b"), ()]),
    ),
    max_size=20,
)


def counted(rows) -> BinaryCounts:
    metric = BinaryCounts(["a", "b"])
    metric.update(*zip(*rows, strict=True)) if rows else metric.update([], [], [])
    return metric


def test_every_cell_by_hand() -> None:
    rows = [(a, e, ("a",)) for a, e in itertools.product([True, False, None], [True, False])]
    tables = counted([*rows, (True, True, ())]).tables()
    # no answer counts as missed where yes was expected, and as nothing found where no was
    assert tables["a"] == BinaryTable(tp=1, fp=1, tn=1, fn=2, void=1)
    assert tables["overall"] == BinaryTable(tp=2, fp=1, tn=1, fn=2, void=1)
    assert tables["b"] == BinaryTable(0, 0, 0, 0, 0)


def test_figures_by_hand() -> None:
    figures = BinaryTable(tp=6, fp=2, tn=8, fn=3, void=1).figures()
    assert figures == pytest.approx(
        {
            "accuracy": 100 * 14 / 20,
            "precision": 75.0,
            "recall": 100 * 6 / 9,
            "f1": 100 * 2 * 0.75 * (6 / 9) / (0.75 + 6 / 9),
            "yes_ratio": 40.0,
        }
    )


def test_nothing_said_yes_is_no_division_by_zero() -> None:
    figures = BinaryTable(tp=0, fp=0, tn=5, fn=5, void=0).figures()
    assert (figures["precision"], figures["recall"], figures["f1"]) == (0, 0, 0)
    assert figures["accuracy"] == 50


def test_no_question_has_no_figure() -> None:
    assert all(math.isnan(value) for value in BinaryTable(0, 0, 0, 0, 0).figures().values())
    assert math.isnan(counted([]).compute()["a/f1"])


@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 3))
def test_order_and_sharing_leave_the_counts(rows, random, shares: int) -> None:
    whole = counted(rows)
    shuffled = random.sample(rows, len(rows))
    first, *others = [counted(shuffled[i::shares]) for i in range(shares)]
    for other in others:
        first.merge_state(other)
    assert torch.equal(first.cells, whole.cells)


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match="unknown group 'c'"):
        BinaryCounts(["a"]).update([True], [True], [("c",)])
    with pytest.raises(ValueError, match="shorter"):
        BinaryCounts().update([True], [], [()])


@given(
    st.lists(
        st.tuples(st.one_of(st.none(), st.floats(-2, 2).map(lambda x: round(x, 1))), st.booleans()),
        max_size=20,
    )
)
def test_auroc_is_how_often_a_positive_ranks_above(rows) -> None:
    """Compare all pairs; what has no confidence loses against everything, but its own kind."""
    positive = [-math.inf if x is None else x for x, y in rows if y]
    negative = [math.inf if x is None else x for x, y in rows if not y]
    found = auroc([x for x, _ in rows], [y for _, y in rows])
    if not positive or not negative:
        assert math.isnan(found)
        return
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert found == pytest.approx(100 * sum(pairs) / len(pairs), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_torchmetrics_in_more_digits(rows) -> None:
    expected = torch.tensor([y for _, y in rows])
    confidences = torch.tensor([x / 10 for x, _ in rows], dtype=torch.float64)
    if len(set(expected.tolist())) == 2:
        theirs = 100 * binary_auroc(confidences, expected.long()).item()
        assert auroc(confidences.tolist(), expected.tolist()) == pytest.approx(theirs, abs=1e-4)


def test_auroc_takes_any_scale() -> None:
    """torchmetrics squashes what lies outside [0, 1]: 40 and 41 would tie."""
    assert auroc([41.0, 40.0], [True, False]) == 100
    assert auroc([-math.inf, math.inf, math.nan], [False, True, True]) == 50

"""Circular evaluation: all rotations of a question, whatever their order and place."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.metrics.circular import CircularScore
from qvlm_lightning.metrics.target import Judgement

RIGHT, WRONG, UNPARSED = Judgement(10, "A"), Judgement(0, "B"), Judgement(0, None)
ROTATIONS = {"7": 4, "8": 2, "9": 3}


def scored(rows) -> CircularScore:
    metric = CircularScore(ROTATIONS, {"7": ("c/x",), "8": ("c/x",), "9": ("c/y",)})
    metric.update([j for j, _, _ in rows], [q for _, q, _ in rows], [f for _, _, f in rows])
    return metric


def rows_of(judgements: dict[str, list[Judgement]]):
    return [(j, q, i == 0) for q, js in judgements.items() for i, j in enumerate(js)]


def test_by_hand() -> None:
    rows = rows_of({"7": [RIGHT] * 4, "8": [RIGHT, WRONG], "9": [UNPARSED, RIGHT, RIGHT]})
    metric = scored(rows)
    assert metric.counts() == {
        "overall": (1, 3),
        "c/x": (1, 2),
        "c/y": (0, 1),
        "first_pass": (2, 3),
        "row": (7, 9),
    }
    assert metric.unparsed == 1
    assert metric.compute()["overall"].item() == pytest.approx(100 / 3)


def test_a_rotation_that_was_not_answered_is_wrong() -> None:
    rows = rows_of({"7": [RIGHT] * 4, "8": [RIGHT], "9": [RIGHT] * 3})
    assert scored(rows).counts()["overall"] == (2, 3)


def test_without_questions_there_is_no_score() -> None:
    metric = CircularScore({})
    metric.update([], [], [])
    assert math.isnan(metric.compute()["overall"])


@given(
    st.lists(st.sampled_from([RIGHT, WRONG, UNPARSED]), min_size=9, max_size=9),
    st.randoms(use_true_random=False),
    st.integers(1, 3),
)
def test_order_and_sharing_leave_the_state(judgements, random, shares: int) -> None:
    """Rotations of a question may end up in different processes."""
    given_ = {"7": judgements[:4], "8": judgements[4:6], "9": judgements[6:]}
    rows = rows_of(given_)
    whole, shuffled = scored(rows), random.sample(rows, len(rows))
    first, *others = [scored(shuffled[i::shares]) for i in range(shares)]
    for other in others:
        first.merge_state(other)
    for state in ("hits", "first_hits", "unparsed"):
        assert torch.equal(getattr(first, state), getattr(whole, state))
    expected = sum(all(j is RIGHT for j in js) for js in given_.values())
    assert whole.counts()["overall"] == (expected, 3)


def test_an_unannounced_question_is_named() -> None:
    with pytest.raises(ValueError, match="unknown question '1'"):
        scored([(RIGHT, "1", True)])

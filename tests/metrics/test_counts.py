import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.metrics.counts import Agreement, AnswerAccuracy, ParseFailures

ROWS = [
    # text, answer, other model's text, options, family
    ("red", "red", "red", 0, "color"),
    ("Blue", "blue", "green", 0, "color"),
    ("green", "red", "green", 0, "color"),
    ("A", "A", "(A)", 3, "pick"),
    ("E", "B", "B", 3, "pick"),
    ("", "yes", "", 0, "exists"),
]
FAMILIES = ["color", "pick", "exists", "never"]


def columns(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def test_hand_counted_values():
    texts, answers, others, choices, families = columns(ROWS)
    accuracy, failures, agreement = (
        kind(FAMILIES) for kind in (AnswerAccuracy, ParseFailures, Agreement)
    )
    accuracy.update(texts, answers, choices, families)
    failures.update(texts, choices, families)
    agreement.update(texts, others, choices, families)
    assert accuracy.counts() == {
        "overall": (3, 6),
        "color": (2, 3),
        "pick": (1, 2),
        "exists": (0, 1),
    }
    assert failures.counts() == {
        "overall": (2, 6),
        "color": (0, 3),
        "pick": (1, 2),
        "exists": (1, 1),
    }
    assert agreement.counts()["overall"] == (4, 6)
    assert accuracy.compute()["pick"] == 50.0


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 3), st.integers(1, 5))
def test_order_batches_and_processes_do_not_matter(rng: random.Random, processes, batch):
    rows = [rng.choice(ROWS) for _ in range(17)]
    whole = AnswerAccuracy(FAMILIES)
    texts, answers, _, choices, families = columns(rows)
    whole.update(texts, answers, choices, families)
    shuffled = rng.sample(rows, len(rows))
    parts = []
    for rank in range(processes):
        part = AnswerAccuracy(FAMILIES)
        mine = shuffled[rank::processes]
        for first in range(0, len(mine), batch):
            texts, answers, _, choices, families = columns(mine[first : first + batch])
            part.update(texts, answers, choices, families)
        parts.append(part)
    # what torchmetrics does over processes with dist_reduce_fx="sum"
    assert torch.equal(sum(p.hits for p in parts), whole.hits)
    assert torch.equal(sum(p.total for p in parts), whole.total)


def test_states_are_integers_and_summed():
    metric = AnswerAccuracy(FAMILIES)
    assert metric.hits.dtype == metric.total.dtype == torch.int64
    stacked = torch.tensor([[1, 2], [3, 4]])
    assert all(sum_(stacked).tolist() == [4, 6] for sum_ in metric._reductions.values())


def test_unknown_family_raises():
    with pytest.raises(KeyError, match="other"):
        AnswerAccuracy(FAMILIES).update(["x"], ["x"], [0], ["other"])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_counted_is_not_a_number():
    assert AnswerAccuracy(FAMILIES).compute()["overall"].isnan()

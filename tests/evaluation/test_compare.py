import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.intervals import mcnemar_p, wilson_interval
from qvlm_lightning.results.compare import compare
from qvlm_lightning.results.compare_tables import main_grid
from qvlm_lightning.results.entries import Entry

POINTS = {"full": [10, 10, 10, 3, 0, 10], "small": [10, 0, 0, 6, 0, 10]}


@pytest.fixture
def entry(answered):
    """Six questions with points in between, in overlapping groups."""

    def make(label: str, points=None, **other) -> Entry:
        points = POINTS[label] if points is None else points
        n = len(points)
        fields = {
            "ids": [f"q{i}" for i in range(n)],
            "texts": [f"{label} {i}" for i in range(n)],
            "answers": ["x"] * n,
            "choices": [0] * n,
            "families": [""] * n,
            "points": points,
            "parsed": [None if p == 0 else "x" for p in points],
            "groups": [["kind/a", "kind/b"] if i < 2 else ["kind/b"] for i in range(n)],
            "benchmark": "bench",
            "mode": "official",
            "log_probs": None,
        }
        return Entry(label, answered("fp", **(fields | other)), label)

    return make


def test_hand_counted_scores_and_differences(entry):
    (found,) = compare([entry("full"), entry("small")])
    score = found.find("score", "full")
    assert (score["value"], score["n"]) == (pytest.approx(100 * 43 / 60), 6)
    assert score["ci_low"] < score["value"] < score["ci_high"]
    difference = found.find("difference", "small")
    assert difference["value"] == pytest.approx(100 * -17 / 60)
    assert (difference["won"], difference["lost"]) == (1, 2)
    assert difference["p_value"] == mcnemar_p(2, 1)
    assert difference["ci_low"] < difference["value"] < difference["ci_high"]
    assert difference["reference"] == "full"
    assert found.find("difference", "full") is None
    assert found.find("agreement", "small")["value"] == pytest.approx(100 * 4 / 6)
    assert found.find("parse_failures", "small")["value"] == pytest.approx(50.0)
    assert found.find("score", "small", "kind/a")["value"] == 50.0
    assert found.groups == ["kind/a", "kind/b"]


def test_right_and_wrong_have_wilsons_interval(entry):
    (found,) = compare([entry("full", [10, 10, 0, 0, 0])])
    row = found.find("score", "full")
    low, high = wilson_interval(2, 5)
    assert (row["ci_low"], row["ci_high"]) == (100 * low, 100 * high)


def test_a_cluster_is_worth_its_worst(entry):
    clusters = ["a", "a", "b", "b", "", ""]
    (found,) = compare(
        [
            entry("full", [10, 10, 10, 10, 0, 10], clusters=clusters),
            entry("small", [10, 10, 10, 0, 10, 10], clusters=clusters),
        ]
    )
    assert found.find("score", "full")["value"] == 75.0
    assert found.find("score", "small")["value"] == 75.0
    difference = found.find("difference", "small")
    assert (difference["won"], difference["lost"], difference["n"]) == (1, 1, 4)
    # parse failures are those of questions
    assert found.find("parse_failures", "small")["n"] == 6


def test_divergence_of_the_first_token(entry):
    p = torch.tensor([[0.5, 0.5]] * 6).log()
    q = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    (found,) = compare([entry("full", log_probs=p), entry("small", log_probs=q.log())])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    row = found.find("kl", "small")
    assert row["value"] == pytest.approx(expected / 6)
    assert 0 <= row["ci_low"] <= row["value"] <= row["ci_high"]
    assert found.find("same_token", "small")["value"] == pytest.approx(100 * 5 / 6)
    assert found.find("kl", "small", "kind/a")["value"] == pytest.approx(expected / 2)


def test_no_divergence_between_models_of_other_weights(entry):
    p = torch.tensor([[0.5, 0.5]] * 6).log()
    other = entry("small", log_probs=p, base="another model")
    (found,) = compare([entry("full", log_probs=p), other])
    assert found.find("kl", "small") is None
    assert found.find("agreement", "small") is not None


def test_the_order_of_the_questions_does_not_matter(entry):
    given = [entry("full"), entry("small", log_probs=torch.eye(6).log_softmax(-1))]
    given[0] = replace(
        given[0], predictions=replace(given[0].predictions, log_probs=torch.zeros(6, 6))
    )
    order = random.Random(1).sample(range(6), 6)
    small = given[1].predictions
    moved = {
        name: [getattr(small, name)[i] for i in order]
        for name in ("ids", "texts", "answers", "choices", "families", "points", "parsed", "groups")
    }
    shuffled = replace(small, log_probs=small.log_probs[order], **moved)
    (expected,), (found,) = compare(given), compare([given[0], Entry("small", shuffled, "small")])
    assert found.rows == expected.rows


def test_slow_reference_of_the_paired_interval(entry):
    rng = np.random.default_rng(0)
    a, b = rng.choice([0, 3, 6, 9, 10], 400), rng.choice([0, 3, 6, 9, 10], 400)
    groups = [[] for _ in a]
    made = [
        entry("full", b.tolist(), groups=groups),
        entry("small", a.tolist(), groups=groups),
    ]
    (found,) = compare(made)
    row = found.find("difference", "small")
    means = sorted((a - b)[rng.integers(0, 400, 400)].mean() * 10 for _ in range(2000))
    assert row["ci_low"] == pytest.approx(means[50], abs=0.8)
    assert row["ci_high"] == pytest.approx(means[-51], abs=0.8)


def test_every_benchmark_is_compared_with_the_reference_that_answered_it(entry):
    given = [
        entry("full"),
        entry("small"),
        entry("small", benchmark="second"),
        entry("full", benchmark="second"),
        entry("small", benchmark="third"),
    ]
    found = compare(given)
    assert [(c.benchmark, c.reference.label) for c in found] == [
        ("bench", "full"),
        ("second", "full"),
        ("third", "small"),
    ]
    assert [c.reference.label for c in compare(given, "small")] == ["small"] * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": [f"r{i}" for i in range(6)]}, "6 questions and 'full' 6, 0 of them the same"),
        ({"answers": ["y"] * 6}, "expected other answers to the same questions"),
        ({"mode": "lmms"}, "scored by 'lmms' for 'small' and by 'official' for 'full'"),
    ],
)
def test_what_cannot_be_compared(entry, change, words):
    with pytest.raises(InputError, match=words):
        compare([entry("full"), entry("small", **change)])


def test_fewer_questions_cannot_be_compared(entry):
    with pytest.raises(InputError, match="'small' answered 5 questions and 'full' 6, 5 of them"):
        compare([entry("full"), entry("small", POINTS["small"][:5])])


def test_an_unknown_reference(entry):
    with pytest.raises(InputError, match="reference is 'best'; allowed are 'full', 'small'"):
        compare([entry("full"), entry("small")], "best")


def test_what_was_asked_otherwise_is_said(entry):
    p = torch.tensor([[0.5, 0.5]] * 6).log()
    asked = {"questions": "digest", "max_new_tokens": 16, "stop": []}
    full = entry("full", log_probs=p, asked=asked)

    def against(**changed) -> tuple[bool, str]:
        (found,) = compare([full, entry("small", log_probs=p, **changed)])
        return found.find("kl", "small") is not None, main_grid(found).note

    has_kl, note = against(asked=asked)
    assert has_kl
    assert "was asked" not in note
    has_kl, note = against(asked=asked | {"max_new_tokens": 4})
    assert has_kl
    assert note.endswith("small was asked with another max_new_tokens.")
    has_kl, note = against(asked=asked | {"questions": "another", "stop": ["."]})
    assert not has_kl
    assert note.endswith("small was asked with another prompt and stop strings.")
    # a digest of questions in another order says nothing
    ids = [f"q{i}" for i in reversed(range(6))]
    assert against(asked=asked | {"questions": "another"}, ids=ids)[0]
    assert "was asked" not in against(asked=asked | {"questions": "another"}, base="others")[1]


def test_splits_are_compared_apart(entry):
    other = {"ids": [f"d{i}" for i in range(6)], "split": "development"}
    given = [entry("full"), entry("full", **other), entry("small"), entry("small", **other)]
    compared = compare(given)
    assert [c.name for c in compared] == ["bench", "bench, development split"]
    assert [len(c.entries) for c in compared] == [2, 2]
    assert {row["split"] for row in compared[1].rows} == {"development"}

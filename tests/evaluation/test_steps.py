"""Differences between two rows of a table, averaged over seeds, by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qvlm_lightning.results.render import markdown
from qvlm_lightning.results.steps import Step, is_significant, step_grid, step_rows


@pytest.fixture
def answers(answered):
    """Make answers of a method and seed; a probability of the right token stands for all."""

    def make(method, seed, points, first=None, **other):
        logits = None
        if first is not None:
            p = torch.tensor(first, dtype=torch.float64)
            logits = torch.stack([p, 1 - p], dim=1).log()
        made = answered(method, points=points, parsed=["x"] * 4, log_probs=logits, **other)
        made.variant = replace(made.variant, seed=seed)
        return made

    return make


def test_accuracy_of_two_seeds(answers):
    first = answers("qvlm", 0, [10, 10, 10, 0]), answers("rtn", 0, [10, 0, 0, 0])
    second = answers("qvlm", 1, [10, 10, 0, 0]), answers("rtn", 1, [0, 10, 0, 0])
    (row,) = step_rows(Step("cdm", "rtn", [first, second], answers("fp", None, [10] * 4)))
    # per question (0 + 1) / 2, (1 + 0) / 2, (1 + 0) / 2, 0
    assert (row["metric"], row["value"], row["n"]) == ("accuracy", 37.5, 4)
    assert (row["low"], row["high"], row["seeds"]) == (25.0, 50.0, [0, 1])
    rng = np.random.default_rng(5)
    means = sorted(rng.choice([50.0, 50.0, 50.0, 0.0], 4).mean() for _ in range(4000))
    assert row["ci_low"] == pytest.approx(means[100], abs=13)
    assert row["ci_high"] == pytest.approx(means[-101], abs=13)


def test_divergence_is_paired_by_question(answers):
    full = answers("fp", None, [10] * 4, [0.5, 0.5, 0.5, 0.5])
    mine = answers("qvlm", 0, [10] * 4, [0.5, 0.4, 0.5, 0.5])
    theirs = answers("rtn", 0, [10] * 4, [0.3, 0.4, 0.5, 0.5])
    rows = step_rows(Step("cdm", "rtn", [(mine, theirs)], full))
    kl = next(row for row in rows if row["metric"] == "kl")
    expected = -(0.5 * np.log(0.5 / 0.3) + 0.5 * np.log(0.5 / 0.7)) / 4
    assert kl["value"] == pytest.approx(expected)
    assert kl["low"] == kl["high"] == pytest.approx(expected)
    assert kl["ci_low"] < expected
    assert kl["ci_high"] == pytest.approx(0.0)


def test_without_log_probabilities_there_is_no_divergence(answers):
    full = answers("fp", None, [10] * 4, [0.5] * 4)
    pairs = [
        (answers("qvlm", 0, [10] * 4, [0.5] * 4), answers("rtn", 0, [10] * 4, [0.4] * 4)),
        (answers("qvlm", 1, [10] * 4), answers("rtn", 1, [10] * 4, [0.4] * 4)),
    ]
    assert [row["metric"] for row in step_rows(Step("a", "b", pairs, full))] == ["accuracy"]


def test_a_cluster_counts_once(answers):
    clusters = {"clusters": ["a", "a", "", ""]}
    pair = answers("qvlm", 0, [10] * 4, **clusters), answers("rtn", 0, [0, 10, 10, 10], **clusters)
    (row,) = step_rows(Step("a", "b", [pair], answers("fp", None, [10] * 4)))
    assert (row["value"], row["n"]) == (pytest.approx(100 / 3), 3)


@pytest.mark.parametrize(
    ("bounds", "significant"),
    [
        ((0.1, 0.3, 0.1, 0.2), True),
        ((-0.3, -0.1, -0.2, -0.1), True),
        ((-0.1, 0.3, 0.1, 0.2), False),
        ((0.1, 0.3, -0.1, 0.2), False),
        ((0.0, 0.3, 0.1, 0.2), False),
    ],
)
def test_significant_is_what_neither_questions_nor_seeds_put_in_doubt(bounds, significant):
    assert (
        is_significant(dict(zip(("ci_low", "ci_high", "low", "high"), bounds, strict=True)))
        is significant
    )


def test_the_table_of_steps():
    head = {"row": "cdm w4a4", "against": "sequential w4a4", "split": "development", "seeds": [0]}
    head |= {"outlier_scale": 1.0, "n": 8000}
    accuracy = {"metric": "accuracy", "value": 0.25, "ci_low": -0.1, "ci_high": 0.6}
    kl = {"metric": "kl", "value": -0.02, "ci_low": -0.03, "ci_high": -0.01}
    rows = [
        head | accuracy | {"low": 0.25, "high": 0.25},
        head | kl | {"low": -0.025, "high": -0.015},
    ]
    text = markdown(step_grid(rows))
    assert text.startswith("### Steps, development split")
    assert "| cdm w4a4 − sequential w4a4 | +0.2 [-0.1, +0.6] +0.2 to +0.2 |" in text
    assert "stress" not in text
    assert markdown(step_grid([row | {"sink_scale": 50.0} for row in rows])).count(
        "sequential w4a4 (stress: sink ×50) |"
    )
    assert "| -0.0200 [-0.0300, -0.0100] -0.0250 to -0.0150, significant | 1 | 8,000 |" in text

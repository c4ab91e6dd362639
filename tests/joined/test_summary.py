import pytest

from qvlm_lightning.metrics.intervals import wilson_interval
from qvlm_lightning.results.render import groups
from tools.joined.summary import HEADER, OPEN, YES_NO, accuracy_of, summary

HEAD = {"split": "test", "outlier_scale": 1.0, "sink_scale": 1.0, "stress": False, "seed": 0}
RTN = {"scheme": "w8a8", "method": "rtn", "variant": "rtn", "activation_mode": "static_tensor"}
FULL = {"scheme": "fp", "method": "fp", "variant": "fp", "activation_mode": "none", "seed": None}
KINDS = {"kind/shape": (8, 10), "kind/colour": (5, 20), "kind/yes-no": (30, 40)}


def row(who: dict, metric: str, value: float, n: int = 10, task: str = "overall") -> dict:
    figures = {"metric": metric, "value": value, "ci_low": None, "ci_high": None, "n": n}
    return HEAD | who | figures | {"task": task}


@pytest.fixture
def rows() -> list[dict]:
    """Full precision without divergences, and a row with all there is."""
    made = [row(FULL, "accuracy", 90.0), row(FULL, "perplexity", 21.2)]
    made += [row(RTN, "accuracy", 100 * 43 / 70, 70)]
    made += [row(RTN, "accuracy", 100 * k / n, n, task) for task, (k, n) in KINDS.items()]
    metrics = ("kl", "text_kl_prompts", "text_kl_passage", "perplexity", "same_answers")
    values = (0.25, 0.5, 0.0625, 22.0, 40.0)
    made += [row(RTN, metric, value) for metric, value in zip(metrics, values, strict=True)]
    return [*made, row(RTN, "same_tokens", 60.0), row(RTN, "calibration_seconds", 33.3)]


def test_open_questions_are_those_of_both_kinds(rows):
    group = groups(rows)[1]
    (found,) = accuracy_of(group, OPEN)
    assert found["value"] == pytest.approx(100 * 13 / 30)
    assert found["n"] == 30
    assert (found["ci_low"], found["ci_high"]) == tuple(100 * x for x in wilson_interval(13, 30))
    assert accuracy_of(group, YES_NO)[0]["value"] == pytest.approx(75.0)
    assert accuracy_of(groups(rows)[0], OPEN) == []


def test_every_row_says_what_was_measured(rows):
    grid = summary(rows)
    full, rounded = grid.rows
    assert full == ["full precision", "90.0", *["–"] * 5, "21.20", *["–"] * 3]
    assert rounded == [
        *("W8A8 rtn", "61.4", "43.3", "75.0", "0.250", "0.500", "0.0625", "22.00"),
        *("40.0", "60.0", "33.3"),
    ]
    assert len(grid.header) == len(HEADER) == len(rounded)
    assert "W4 is second generation" in grid.note

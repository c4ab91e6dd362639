"""The joined model's table in one: what its questions, photographs and passage say of every row."""

from collections.abc import Sequence

from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.metrics.intervals import wilson_interval
from qvlm_lightning.results.render import Grid, Group, cell, groups, nats, points
from qvlm_lightning.results.rows import Row, figure

NOTE = (
    "Joined: pretrained tower and language model, joined and briefly tuned by us; the language "
    "model comes 4-bit rounded from its package, so that W4 is second generation."
)
OPEN, YES_NO = ("kind/shape", "kind/colour"), ("kind/yes-no",)
HEADER = [
    "row",
    "easy-VQA %",
    "open %",
    "yes/no %",
    "KL first token",
    "KL photographs",
    "KL passage",
    "perplexity",
    "same answers %",
    "same tokens %",
    "calibration, s",
]


def summary(rows: Sequence[Row]) -> Grid:
    """Lay out all rows in one table.

    Args:
        rows: rows of ``results.json``.
    """
    return Grid("The joined model", HEADER, [_line(group) for group in groups(rows)], NOTE)


def accuracy_of(group: Group, kinds: Sequence[str]) -> list[Row]:
    """Return the accuracy of some kinds of questions together, with Wilson's interval, per seed.

    Args:
        group: rows of one variant.
        kinds: families of questions.
    """
    found: dict[int | None, list[tuple[int, int]]] = {}
    for kind in kinds:
        for row in group.find("accuracy", kind):
            hits = round(row["value"] * row["n"] / 100)
            found.setdefault(row["seed"], []).append((hits, row["n"]))
    made = []
    for counts in found.values():
        hits, n = (sum(column) for column in zip(*counts, strict=True))
        low, high = wilson_interval(hits, n)
        made.append(figure("accuracy", 100 * hits / n, (100 * low, 100 * high), n))
    return made


def _line(group: Group) -> list[str]:
    return [
        group.label,
        cell(group.find("accuracy", OVERALL), points),
        cell(accuracy_of(group, OPEN), points, interval=False),
        cell(accuracy_of(group, YES_NO), points, interval=False),
        cell(group.find("kl"), nats),
        cell(group.find("text_kl_prompts"), nats),
        cell(group.find("text_kl_passage"), nats),
        cell(group.find("perplexity"), lambda value: f"{value:,.2f}"),
        cell(group.find("same_answers"), points),
        cell(group.find("same_tokens"), points, interval=False),
        cell(group.find("calibration_seconds"), points, interval=False),
    ]

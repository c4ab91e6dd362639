"""Steps of an ablation: what a row buys over another on the same questions and pairs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qvlm_lightning.metrics.intervals import bootstrap_interval
from qvlm_lightning.metrics.target import WHOLE
from qvlm_lightning.results.measures import divergences
from qvlm_lightning.results.predictions import Predictions
from qvlm_lightning.results.render import NONE, Grid, in_split, nats, signed
from qvlm_lightning.results.rows import Row, figure, units
from qvlm_lightning.results.stress import Stress

NOTE = (
    "Each row minus the other, a mean over calibration seeds; accuracy in percentage points, KL in "
    "nats (below zero: nearer to full precision). In brackets the 95 % interval over questions, "
    "then the lowest and the highest of the seeds. Significant: neither reaches zero."
)


@dataclass(frozen=True)
class Step:
    """Two rows of a table, and what they answered for each calibration seed."""

    row: str
    """The row."""
    against: str
    """The row it is compared with."""
    pairs: list[tuple[Predictions, Predictions]]
    """Answers of both per seed, to the same questions in the same order."""
    reference: Predictions
    """Answers in full precision."""


def step_rows(step: Step) -> list[Row]:
    """Compare two rows of a table by question and seed.

    Args:
        step: the two.

    Returns:
        Rows with ``row, against, split, outlier_scale, sink_scale, seeds``, then ``metric``
        (``accuracy``, percentage points, and ``kl``, nats, where log-probabilities were kept),
        ``value``, the mean difference; ``ci_low, ci_high``, the bootstrap's 95 % interval over
        questions of the differences averaged over seeds; ``low, high``, the extremes of the seeds;
        and ``n``.
    """
    first = step.pairs[0][0]
    head = {
        "row": step.row,
        "against": step.against,
        "split": first.split,
        **first.variant.stress._asdict(),
        "seeds": [mine.variant.seed for mine, _ in step.pairs],
    }
    points = [100 / WHOLE * (_points(mine) - _points(theirs)) for mine, theirs in step.pairs]
    rows = [_row("accuracy", points)]
    found = [[divergences(p, step.reference) for p in pair] for pair in step.pairs]
    gaps = [mine - theirs for mine, theirs in found if mine is not None and theirs is not None]
    if len(gaps) == len(step.pairs):
        rows.append(_row("kl", gaps))
    return [head | row for row in rows]


def _points(answered: Predictions) -> np.ndarray:
    everything = np.arange(len(answered.ids))
    return units(np.array(answered.points), answered.clusters, everything)


def _row(metric: str, differences: list[np.ndarray]) -> Row:
    by_question = np.mean(differences, axis=0)
    means = [float(difference.mean()) for difference in differences]
    interval = bootstrap_interval(by_question)
    row = figure(metric, float(by_question.mean()), interval, len(by_question))
    return row | {"low": min(means), "high": max(means)}


def is_significant(row: Row) -> bool:
    """Return whether neither the interval over questions nor the seeds reach zero."""
    bounds = [row[key] for key in ("ci_low", "ci_high", "low", "high")]
    return all(bound > 0 for bound in bounds) or all(bound < 0 for bound in bounds)


def step_grid(rows: Sequence[Row]) -> Grid:
    """Lay out the steps of a table.

    Args:
        rows: see :func:`step_rows`; at least one.
    """
    steps: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        key = row["row"], row["against"], Stress.of(row)
        steps.setdefault(key, {})[row["metric"]] = row
    lines = []
    for (name, against, stress), metrics in steps.items():
        cells = [_cell(metrics.get("accuracy"), signed), _cell(metrics.get("kl"), signed_nats)]
        any_row = next(iter(metrics.values()))
        lines.append(
            [
                f"{name} − {against} {stress.in_brackets}".rstrip(),
                *cells,
                str(len(any_row["seeds"])),
                f"{any_row['n']:,}",
            ]
        )
    header = ["step", "accuracy", "KL, nats", "seeds", "n"]
    return Grid(f"Steps{in_split(rows[0]['split'])}", header, lines, NOTE)


def _cell(row: Row | None, number: Callable[[float], str]) -> str:
    if row is None:
        return NONE
    interval = f"[{number(row['ci_low'])}, {number(row['ci_high'])}]"
    seeds = f"{number(row['low'])} to {number(row['high'])}"
    return (
        f"{number(row['value'])} {interval} {seeds}{', significant' if is_significant(row) else ''}"
    )


def signed_nats(value: float) -> str:
    """Write a difference of divergences."""
    return f"{'-' if value < 0 else '+'}{nats(abs(value))}"

"""Figures of some questions with their intervals: what rows of every table are made of.

A row is ``metric, value, ci_low, ci_high, n``; which questions it counts, its table adds. Scores,
rates and their differences are percent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qvlm_lightning.metrics.intervals import (
    bootstrap_interval,
    score_difference,
    wilson_interval,
)
from qvlm_lightning.metrics.target import WHOLE
from qvlm_lightning.results.stress import Stress

Row = dict[str, Any]
IDENTITY = ("split", *Stress._fields, "scheme", "method", "variant", "activation_mode")
"""Keys of a row of ``results.json`` that say whose it is, without the calibration seed."""


def figure(metric: str, value: float, interval: tuple[float, float] | None, n: int) -> Row:
    """Return the row of a value and its interval, if it has one, over ``n`` questions.

    Example:
        >>> figure("seconds", 1.5, None, 4)
        {'metric': 'seconds', 'value': 1.5, 'ci_low': None, 'ci_high': None, 'n': 4}
    """
    low, high = interval or (None, None)
    return {"metric": metric, "value": value, "ci_low": low, "ci_high": high, "n": n}


def score(metric: str, points: np.ndarray, binary: bool) -> Row:
    """Return the mean score: with Wilson's interval, or the bootstrap's for points in between.

    Args:
        metric: its name.
        points: of what counts as one (see :func:`units`).
        binary: whether the benchmark's answers are right or wrong.
    """
    total, n = int(points.sum()), len(points)
    if binary:
        low, high = wilson_interval(total // WHOLE, n)
    else:
        low, high = (x / WHOLE for x in bootstrap_interval(points, levels=WHOLE + 1))
    return figure(metric, 100 * total / (WHOLE * n), (100 * low, 100 * high), n)


def rate(metric: str, hits: np.ndarray) -> Row:
    """Return the share of hits with Wilson's interval."""
    k, n = int(hits.sum()), len(hits)
    low, high = wilson_interval(k, n)
    return figure(metric, 100 * k / n, (100 * low, 100 * high), n)


def mean(metric: str, values: np.ndarray) -> Row:
    """Return a mean with the bootstrap's interval, in the unit of ``values``."""
    return figure(metric, float(values.mean()), bootstrap_interval(values), len(values))


def difference(metric: str, points: np.ndarray, others: np.ndarray, whole: int = WHOLE) -> Row:
    """Return how much the mean score is above that of ``others``, on the same questions, with
    ``p_value`` (McNemar's mid-p), ``won`` and ``lost``.

    Args:
        metric: its name.
        points: of what counts as one, 0 to ``whole``.
        others: the same of the model it is compared with.
        whole: points of a right answer.
    """
    change = score_difference(points, others, whole)
    interval = 100 * change.ci_low, 100 * change.ci_high
    row = figure(metric, 100 * change.value, interval, len(points))
    return row | {"p_value": change.p_value, "won": change.won, "lost": change.lost}


def right_or_wrong(points: np.ndarray) -> bool:
    """Return whether no answer has points in between."""
    return bool(np.isin(points, (0, WHOLE)).all())


def units(points: np.ndarray, clusters: Sequence[str], places: np.ndarray) -> np.ndarray:
    """Return the points of what counts as one: a question alone, or the worst of a cluster.

    Args:
        points: of every question.
        clusters: cluster of every question; empty: alone.
        places: the questions that count.

    Example:
        >>> units(np.array([10, 10, 0, 10]), ["a", "", "a", ""], np.arange(4)).tolist()
        [0, 10, 10]
    """
    if not any(clusters):
        return points[places]
    worst: dict[str, int] = {}
    for place in places.tolist():
        name = f"cluster {clusters[place]}" if clusters[place] else f"question {place}"
        worst[name] = min(worst.get(name, WHOLE), int(points[place]))
    return np.array(list(worst.values()))

"""Means over calibration seeds of every figure of every variant."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from qvlm_lightning.results.rows import IDENTITY, Row

T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t quantile of a two-sided 95 % interval for 1, 2, ... degrees of freedom."""
_COST = ("layer_forwards", "search_seconds")


def seed_means(rows: Sequence[Row]) -> list[Row]:
    """Compute the mean over calibration seeds of each figure.

    Args:
        rows: rows of ``results.json``; of a variant one per seed, task and metric.

    Returns:
        Rows that say whose they are as the given ones do, with ``seeds`` in place of ``seed``.
        ``value`` is the mean, ``sd`` the sample standard deviation, ``low`` and ``high`` the
        smallest and the largest, ``ci_low`` and ``ci_high`` the 95 % interval of Student's t: how
        sure the mean is of another draw of calibration pairs, on the same ``n`` questions. Of one
        seed, or of full precision, there is no deviation and no interval. Costs are means, too;
        ``objective`` and ``candidates`` are None where seeds differ.
    """
    members: dict[tuple, list[Row]] = {}
    for row in rows:
        members.setdefault(tuple(row[key] for key in (*IDENTITY, "task", "metric")), []).append(row)
    return [_mean(own_rows) for own_rows in members.values()]


def _mean(rows: Sequence[Row]) -> Row:
    first, values = rows[0], [row["value"] for row in rows]
    mean: Row = {key: first[key] for key in ("model", *IDENTITY, "stress")}
    mean["seeds"] = [row["seed"] for row in rows if row["seed"] is not None]
    for key in ("objective", "candidates"):
        mean[key] = first[key] if all(row[key] == first[key] for row in rows) else None
    for key in _COST:
        costs = [row[key] for row in rows if row[key] is not None]
        mean[key] = fmean(costs) if costs else None
    deviation, half = None, None
    if len(values) > 1:
        deviation = stdev(values)
        half = t95(len(values) - 1) * deviation / math.sqrt(len(values))
    value = fmean(values)
    return mean | {
        "task": first["task"],
        "metric": first["metric"],
        "value": value,
        "sd": deviation,
        "low": min(values),
        "high": max(values),
        "ci_low": None if half is None else value - half,
        "ci_high": None if half is None else value + half,
        "n": first["n"],
    }


def t95(degrees: int) -> float:
    """Return Student's t quantile of a two-sided 95 % interval.

    Args:
        degrees: degrees of freedom, at least 1; above ten that of ten, which is a little wide.
    """
    return T95[min(degrees, len(T95)) - 1]

"""How sure a number is: intervals of a rate and of a mean, tests of a paired difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


def wilson_interval(k: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a rate.

    Args:
        k: hits.
        n: trials, at least 1.
        z: normal quantile; 95 % by default.

    Returns:
        Bounds as fractions within [0, 1].

    Example:
        >>> [round(x, 4) for x in wilson_interval(8, 10)]
        [0.4902, 0.9433]
    """
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} hits of {n} trials; allowed are 0 <= k <= n with n >= 1")
    rate, share = k / n, z * z / n
    center = (rate + share / 2) / (1 + share)
    half = z / (1 + share) * math.sqrt(rate * (1 - rate) / n + share / (4 * n))
    # the closed ends are exact; rounding must not move them off the rate
    return (0.0 if k == 0 else center - half), (1.0 if k == n else center + half)


def mcnemar_p(only_first: int, only_second: int, mid: bool = True) -> float:
    """McNemar's test of two models on the same questions, from its exact binomial distribution.

    Args:
        only_first: questions that only the first answers correctly.
        only_second: questions that only the second answers correctly.
        mid: count half of the observed outcome's probability (mid-p: the exact test is needlessly
            conservative); False gives the exact test.

    Returns:
        Two-sided p-value; 1 where the models never differ.

    Example:
        >>> round(mcnemar_p(9, 1), 6), round(mcnemar_p(9, 1, mid=False), 6)
        (0.011719, 0.021484)
    """
    n, smaller = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    tail = sum(math.exp(_log_binomial(n, i)) for i in range(smaller + 1))
    observed = math.exp(_log_binomial(n, smaller))
    return min(1.0, 2 * tail - observed if mid else 2 * tail)


def _log_binomial(n: int, k: int) -> float:
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return choose - n * math.log(2)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int = 0, replicates: int = 1000, levels: int = 3
) -> tuple[float, float]:
    """Percentile bootstrap of a mean: the 95 % interval over resampled questions.

    Args:
        values: one number per question; for a paired difference, the difference.
        seed: seed of the resampling.
        replicates: number of resamples.
        levels: up to this many different values, only how often each is drawn is simulated: the
            same in distribution, and quick for many questions.

    Returns:
        The 2.5 % and 97.5 % quantiles of the resampled means.

    Example:
        >>> bootstrap_interval([1.0, 1.0, 1.0])
        (1.0, 1.0)
    """
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    found, counts = np.unique(data, return_counts=True)
    if len(found) <= levels:
        drawn = rng.multinomial(len(data), counts / len(data), size=replicates)
        means = drawn @ found / len(data)
    else:
        means = np.empty(replicates)
        for i in range(replicates):
            means[i] = data[rng.integers(0, len(data), len(data))].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """How much a model differs from another on the same questions."""

    value: float
    """Mean difference, as a fraction."""
    ci_low: float
    """Lower end of the paired bootstrap's 95 % interval."""
    ci_high: float
    """Upper end."""
    p_value: float
    """McNemar's mid-p."""
    lost: int
    """Questions that only the other model answers correctly."""
    won: int
    """Questions that only this model answers correctly."""


def score_difference(
    points: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray, whole: int, seed: int = 0
) -> Difference:
    """Compare two models that answered the same questions, with points in between.

    Args:
        points: of the model, integers of 0 to ``whole`` per question.
        other: of the model it is compared with.
        whole: points of a right answer.
        seed: seed of the bootstrap.

    Returns:
        Difference in the mean score, model minus other. ``won`` and ``lost`` count questions with
        more and with fewer points; the p-value is that of the sign test on them, which is
        McNemar's where answers are right or wrong.

    Example:
        >>> score_difference([10, 3], [6, 3], whole=10).value
        0.2
    """
    a, b = np.asarray(points, dtype=np.int64), np.asarray(other, dtype=np.int64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(
            f"{len(a)} and {len(b)} questions; a paired comparison needs the same ones"
        )
    low, high = bootstrap_interval(a - b, seed, levels=2 * whole + 1)
    won, lost = int((a > b).sum()), int((a < b).sum())
    p_value = mcnemar_p(lost, won)
    return Difference(float((a - b).mean()) / whole, low / whole, high / whole, p_value, lost, won)

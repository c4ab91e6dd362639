import dataclasses
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.metrics.intervals import (
    bootstrap_interval,
    mcnemar_p,
    score_difference,
    wilson_interval,
)


def test_wilson_hand_values():
    # (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96
    assert wilson_interval(50, 100) == pytest.approx((0.403832, 0.596168), abs=1e-6)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.161125), abs=1e-6)
    assert wilson_interval(20, 20) == pytest.approx((0.838875, 1.0), abs=1e-6)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_its_rate(case):
    k, n = case
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n <= high <= 1


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="allowed are 0 <= k <= n"):
        wilson_interval(k, n)


def exact_by_enumeration(b: int, c: int) -> float:
    """Two-sided exact binomial test at 1/2, slowly, with integers."""
    n = b + c
    outcomes = [math.comb(n, i) for i in range(n + 1)]
    return min(1.0, 2 * sum(outcomes[: min(b, c) + 1]) / 2**n)


@pytest.mark.parametrize(("b", "c"), list(product(range(6), range(6)))[1:])
def test_mcnemar_equals_enumeration(b, c):
    assert mcnemar_p(b, c, mid=False) == pytest.approx(exact_by_enumeration(b, c))
    assert mcnemar_p(b, c) == mcnemar_p(c, b) <= mcnemar_p(b, c, mid=False)


def test_mcnemar_hand_values():
    # Fagerland, Lydersen, Laake 2013: 1 against 7 discordant pairs, exact .0703, mid-p .0391
    assert mcnemar_p(1, 7, mid=False) == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar_p(1, 7) == pytest.approx(0.0391, abs=5e-5)
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(4, 4) == pytest.approx(1.0)


def test_mcnemar_with_many_pairs_does_not_overflow():
    assert 0 < mcnemar_p(3900, 4100) < 0.05


def test_bootstrap_matches_the_normal_interval_of_a_large_sample():
    values = np.random.default_rng(1).normal(3, 2, 4000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_bootstrap_of_few_levels_is_the_same_distribution():
    signs = np.repeat([-1, 0, 1], [60, 800, 140])
    few = bootstrap_interval(signs, replicates=4000)
    jitter = signs + np.random.default_rng(0).normal(0, 1e-9, len(signs))  # all levels distinct
    assert few == pytest.approx(bootstrap_interval(jitter, replicates=4000), abs=0.003)


def test_bootstrap_is_seeded():
    values = np.arange(20.0)
    assert bootstrap_interval(values, 3) == bootstrap_interval(values, 3)
    assert bootstrap_interval(values, 3) != bootstrap_interval(values, 4)


def test_difference_is_paired():
    a = [True] * 80 + [False] * 20
    b = [True] * 70 + [False] * 30
    got = score_difference(a, b, whole=1)
    assert (got.won, got.lost) == (10, 0)
    assert got.value == pytest.approx(0.10)
    assert 0 < got.ci_low < 0.10 < got.ci_high
    assert got.p_value == pytest.approx(2**-10)
    back = score_difference(b, a, whole=1)
    assert back.value == -got.value
    assert back.p_value == got.p_value


def test_difference_needs_the_same_questions():
    with pytest.raises(ValueError, match="needs the same ones"):
        score_difference([True], [True, False], whole=1)


def test_points_in_between_are_won_and_lost():
    got = score_difference([10, 6, 3, 0], [3, 6, 0, 10], whole=10)
    assert got.value == pytest.approx((7 + 3 - 10) / 40)
    assert (got.won, got.lost) == (2, 1)
    assert got.p_value == mcnemar_p(1, 2)
    assert -1 <= got.ci_low < got.value < got.ci_high <= 1


def test_points_of_all_or_nothing_are_right_and_wrong():
    a, b = [True, False, True, True], [False, False, True, False]
    tens = [[10 * x for x in row] for row in (a, b)]
    got, expected = score_difference(*tens, whole=10), score_difference(a, b, whole=1)
    assert got == dataclasses.replace(
        expected, ci_low=pytest.approx(expected.ci_low), ci_high=pytest.approx(expected.ci_high)
    )

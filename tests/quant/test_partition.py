"""P1 to P12: sums of edges, and blocks."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.entropy import dependency_average, dependency_sum
from qvlm_lightning.quant.partition import (
    excess,
    partition_blocks,
    partition_blocks_dp,
    resolve_threshold,
)

quick = settings(max_examples=80, deadline=None, derandomize=True)
# rounded, so that two sums differ clearly or not at all
nats = st.one_of(st.floats(0, 2.77), st.integers(0, 4).map(lambda k: k / 2)).map(
    lambda x: round(x, 6)
)
chains = st.lists(nats, max_size=24)
thresholds = nats
depths = st.integers(1, 5)
both = pytest.mark.parametrize("partition", [partition_blocks, partition_blocks_dp])


@st.composite
def problems(draw):
    """(dependency, threshold, max_depth, boundaries)."""
    edges = draw(chains)
    cuts = draw(st.sets(st.integers(0, len(edges) - 1), max_size=4)) if edges else set()
    return edges, draw(thresholds), draw(depths), cuts


def sizes(blocks):
    return [last - first + 1 for first, last in blocks]


def reference_greedy(edges, threshold, depth, cuts):
    """Try every end from the farthest to the nearest, with exact sums of the edge values."""
    blocks, first = [], 0
    while first <= len(edges):
        last = first
        for end in range(min(first + depth - 1, len(edges)), first, -1):
            inside = range(first, end)
            total = math.fsum(edges[k] for k in inside)
            enough = total - len(inside) * threshold > 1e-12 * max(1, abs(total))
            if enough and not any(k in cuts for k in inside):
                last = end
                break
        blocks.append((first, last))
        first = last + 1
    return blocks


def all_partitions(count, depth, cuts):
    """Every partition of a chain into blocks that obey depth and boundaries."""
    for inner in itertools.product((False, True), repeat=count - 1):
        starts = [0, *(k + 1 for k in range(count - 1) if inner[k])]
        blocks = [(a, b - 1) for a, b in zip(starts, [*starts[1:], count], strict=True)]
        if max(sizes(blocks)) <= depth and not any(a <= k < b for a, b in blocks for k in cuts):
            yield blocks


def test_hand_computed_blocks():
    edges = [1.0, 3.0, 3.0, 1.0]
    assert partition_blocks(edges, 2.0, 3) == [(0, 0), (1, 3), (4, 4)]
    assert partition_blocks(edges, 2.0, 3, boundaries=(1,)) == [(0, 0), (1, 1), (2, 3), (4, 4)]
    # the farthest admissible end counts, not the first failure: 1 < 1.9, but 1 + 3 > 3.8
    assert partition_blocks(edges, 1.9, 3) == [(0, 2), (3, 3), (4, 4)]
    assert partition_blocks_dp(edges, 1.9, 3) == [(0, 0), (1, 3), (4, 4)]
    assert resolve_threshold("mean", edges) == 2.0
    assert resolve_threshold("quantile:0.25", edges) == 1.0


@quick
@given(problems())
def test_equals_a_slow_reference(problem):
    assert partition_blocks(*problem) == reference_greedy(*problem)


@quick
@given(st.lists(nats, min_size=1, max_size=12), st.data())
def test_p1_sums_of_edges_add_up(edges, data):
    r, s, t = sorted(data.draw(st.lists(st.integers(0, len(edges)), min_size=3, max_size=3)))
    whole = dependency_sum(edges, r, t)
    assert dependency_sum(edges, r, s) + dependency_sum(edges, s, t) == pytest.approx(whole)
    assert dependency_sum(edges, r, r) == dependency_average(edges, r, r) == 0
    if t > r:
        assert dependency_average(edges, r, t) == pytest.approx(sum(edges[r:t]) / (t - r))


@both
def test_p2_p3_p4_p5_p8_blocks_obey_the_rules(partition):
    @quick
    @given(problems())
    def check(problem):
        edges, threshold, depth, cuts = problem
        blocks = partition(*problem)
        layers = [k for first, last in blocks for k in range(first, last + 1)]
        assert layers == list(range(len(edges) + 1))  # P2: all of them, once, in order
        assert all(1 <= size <= depth for size in sizes(blocks))  # P3
        assert not any(first <= cut < last for first, last in blocks for cut in cuts)  # P4
        for first, last in blocks:  # P5
            assert last == first or dependency_average(edges, first, last) > threshold
        shuffled = sorted(cuts, reverse=True)
        assert (
            partition(torch.tensor(edges, dtype=torch.float64), threshold, depth, shuffled)
            == blocks
        )  # P8

    check()


@quick
@given(problems())
def test_p5_greedy_leaves_no_longer_admissible_block(problem):
    edges, threshold, depth, cuts = problem
    for first, last in partition_blocks(*problem):
        for end in range(last + 1, min(first + depth, len(edges) + 1)):
            if not any(first <= cut < end for cut in cuts):
                assert dependency_average(edges, first, end) <= threshold + 1e-9


@quick
@given(chains, depths)
def test_p6_extreme_thresholds(edges, depth):
    singletons = [(k, k) for k in range(len(edges) + 1)]
    for partition in (partition_blocks, partition_blocks_dp):
        assert partition(edges, 0.7, 1) == singletons
        assert partition(edges, math.log(16) + 1e-6, depth) == singletons
    assert len(partition_blocks(edges, -1.0, depth)) == math.ceil((len(edges) + 1) / depth)


@quick
@given(chains.filter(len), st.data())
def test_p6_extreme_thresholds_in_every_tower(edges, data):
    depth, cut = data.draw(depths), data.draw(st.integers(0, len(edges) - 1))
    expected = math.ceil((cut + 1) / depth) + math.ceil((len(edges) - cut) / depth)
    assert len(partition_blocks(edges, -1.0, depth, {cut})) == expected


@both
@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 2.1])
@pytest.mark.parametrize("count", [1, 6, 23])
def test_p7_constant_dependency(partition, value, count):
    edges = [value] * count
    singletons = [(k, k) for k in range(count + 1)]
    assert partition(edges, value, 3) == singletons
    assert partition(edges, resolve_threshold("mean", edges), 3) == singletons
    assert len(partition(edges, value - 1e-9, 3)) == math.ceil((count + 1) / 3)


@quick
@given(problems())
def test_p9_dp_is_at_least_as_good_as_greedy(problem):
    edges, threshold, _, _ = problem
    best = excess(partition_blocks_dp(*problem), edges, threshold)
    assert best >= excess(partition_blocks(*problem), edges, threshold) - 1e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(nats, min_size=1, max_size=9), thresholds, depths, st.integers(0, 8))
def test_p9_dp_equals_brute_force(edges, threshold, depth, cut):
    cuts = {cut} if cut < len(edges) else set()
    blocks = partition_blocks_dp(edges, threshold, depth, cuts)
    scored = [
        (excess(p, edges, threshold), len(p)) for p in all_partitions(len(edges) + 1, depth, cuts)
    ]
    best = max(value for value, _ in scored)
    assert excess(blocks, edges, threshold) == pytest.approx(best, abs=1e-9)
    assert len(blocks) == max(count for value, count in scored if value > best - 1e-11)


@both
def test_p10_one_layer_and_no_layer(partition):
    assert partition([], 0.5, 3) == [(0, 0)]
    assert partition([], 0.5, 3, units=0) == []
    assert partition([1.0], resolve_threshold("mean", [1.0]), 3) == [(0, 0), (1, 1)]
    assert resolve_threshold("mean", []) == resolve_threshold("quantile:0.5", []) == 0.0
    assert excess([(0, 0)], [], 0.5) == 0.0


@quick
@given(chains, depths, thresholds, thresholds)
def test_p11_a_higher_threshold_never_makes_fewer_blocks_of_dp(edges, depth, first, second):
    low, high = sorted((first, second))
    count = len(partition_blocks_dp(edges, low, depth))
    assert count <= len(partition_blocks_dp(edges, high, depth))


@both
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_p12_dependency_that_is_not_finite(partition, value):
    with pytest.raises(InputError, match=r"dependency 1 is (nan|inf|-inf); all must be finite"):
        partition([0.5, value, 0.1], 0.3, 3)
    with pytest.raises(InputError, match=r"dependency 0 is .*; all must be finite"):
        resolve_threshold("mean", [value])


def test_partition_follows_the_edges_and_not_only_the_position():
    edges = [0.2, 1.5, 1.4, 0.3, 0.2]
    found = {tuple(partition_blocks(p, 0.8, 3)) for p in itertools.permutations(edges)}
    assert len(found) > 5


@quick
@given(st.lists(nats, min_size=1, max_size=20), st.floats(0, 1))
def test_thresholds_equal_the_library(edges, q):
    tensor = torch.tensor(edges, dtype=torch.float64)
    assert resolve_threshold("mean", edges) == pytest.approx(float(tensor.mean()))
    assert resolve_threshold(f"quantile:{q!r}", edges) == pytest.approx(float(tensor.quantile(q)))
    assert resolve_threshold(q, edges) == resolve_threshold(repr(q), edges) == q


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda p: p([0.1], 0.3, 0), "max_depth 0 is not allowed; at least 1"),
        (lambda p: p([0.1], math.nan, 3), "threshold nan is not allowed; a finite number"),
        (lambda p: p([0.1], 0.3, 3, boundaries=(1,)), "boundary 1 is no edge; allowed are 0 to 0"),
        (lambda p: p([0.1], 0.3, 3, boundaries=(-1,)), "boundary -1 is no edge"),
        (lambda p: p([0.1], 0.3, 3, units=3), "1 edges were given for 3 layers; 2 are needed"),
    ],
)
@both
def test_faults_name_what_was_given(partition, fault, message):
    with pytest.raises(InputError, match=message):
        fault(partition)


@pytest.mark.parametrize(
    "threshold",
    ["median", "quantile", "quantile:1.5", "quantile:x", "mean:2", "nan", math.inf, True, ""],
)
def test_threshold_that_cannot_be_read(threshold):
    with pytest.raises(
        InputError, match=r"threshold .* cannot be used; allowed: 'mean', 'quantile:q'"
    ):
        resolve_threshold(threshold, [0.5, 1.0])

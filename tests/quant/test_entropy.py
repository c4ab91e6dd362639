"""E2 to E8 and E11: joint distributions and conditional entropy."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.entropy import (
    conditional_entropy,
    dependency_average,
    dependency_sum,
    entropy,
    hard_codes,
    joint_counts,
    joint_distribution,
    mutual_information,
    real_codes,
    soft_joint_sums,
)

quick = settings(max_examples=50, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
level_counts = st.sampled_from([2, 3, 4, 16])
NATS = 1e-6


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draw_codes(seed, levels, count=400):
    """Two sets of codes that depend on each other to a degree that depends on the seed."""
    g = generator(seed)
    a = torch.randint(levels, (count,), generator=g)
    noise = torch.randint(levels, (count,), generator=g)
    keep = torch.rand(count, generator=g) < torch.rand((), generator=g)
    return a, torch.where(keep, (a * 3 + 1) % levels, noise)


def reference_entropies(codes_a, codes_b):
    """H(U), H(V), H(U,V) and H(V|U) by counting, with plain loops."""
    pairs = list(zip(codes_a.tolist(), codes_b.tolist(), strict=True))
    total = len(pairs)

    def h(counts):
        return -sum(n / total * math.log(n / total) for n in counts.values())

    left = Counter(a for a, _ in pairs)
    given_left = 0.0
    for (a, _), n in Counter(pairs).items():
        given_left -= n / total * math.log(n / left[a])
    return h(left), h(Counter(b for _, b in pairs)), h(Counter(pairs)), given_left


def soft_dependency(u_a, u_b, levels, temperature, **delta):
    return conditional_entropy(
        soft_joint_sums(u_a, u_b, levels, temperature, **delta) / u_a.numel()
    )


def hard_dependency(x, y, levels=16):
    codes = [hard_codes(real_codes(t, t.min(), t.max(), levels), levels) for t in (x, y)]
    return float(conditional_entropy(joint_distribution(*codes, levels)))


def test_hand_computed_joint_and_entropies():
    joint = joint_distribution(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 2)
    assert joint.tolist() == [[0.25, 0.25], [0.0, 0.5]]
    assert joint.dtype == torch.float64
    assert float(conditional_entropy(joint)) == pytest.approx(0.5 * math.log(2), abs=1e-12)
    expected = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)  # H(V)
    assert float(entropy(joint.sum(dim=0))) == pytest.approx(expected, abs=1e-12)
    assert float(mutual_information(joint)) == pytest.approx(
        expected - 0.5 * math.log(2), abs=1e-12
    )


@quick
@given(seeds, level_counts)
def test_equals_counting_with_loops(seed, levels):
    a, b = draw_codes(seed, levels)
    joint = joint_distribution(a, b, levels)
    h_u, h_v, _, h_v_given_u = reference_entropies(a, b)
    assert float(conditional_entropy(joint)) == pytest.approx(h_v_given_u, abs=1e-10)
    assert float(mutual_information(joint)) == pytest.approx(h_v - h_v_given_u, abs=1e-10)
    assert float(entropy(joint.sum(dim=1))) == pytest.approx(h_u, abs=1e-10)


@quick
@given(seeds, level_counts)
def test_e2_bounds(seed, levels):
    a, b = draw_codes(seed, levels)
    u = torch.stack([a, b]) + 0.8 * torch.rand(2, a.numel(), generator=generator(seed)) - 0.4
    soft = soft_joint_sums(u[0].double(), u[1].double(), levels, 0.25) / a.numel()
    for joint in (joint_distribution(a, b, levels), soft):
        h_u, h_v = entropy(joint.sum(dim=1)), entropy(joint.sum(dim=0))
        assert -NATS <= h_u <= math.log(levels) + NATS
        assert 0 <= conditional_entropy(joint) <= h_v + NATS
        assert h_v <= math.log(levels) + NATS
        assert 0 <= mutual_information(joint) <= min(h_u, h_v) + NATS


@quick
@given(seeds, level_counts)
def test_e3_chain_rule(seed, levels):
    a, b = draw_codes(seed, levels)
    joint = joint_distribution(a, b, levels)
    both = entropy(joint.sum(dim=1)) + conditional_entropy(joint)
    assert float(both) == pytest.approx(reference_entropies(a, b)[2], abs=1e-10)


@quick
@given(seeds, level_counts)
def test_e4_a_function_of_the_layer_before_has_no_entropy_left(seed, levels):
    a, _ = draw_codes(seed, levels)
    table = torch.randint(levels, (levels,), generator=generator(seed + 1))
    for b in (a, torch.full_like(a, levels - 1), table[a]):
        value = float(conditional_entropy(joint_distribution(a, b, levels)))
        assert 0 <= value < 1e-12


@pytest.mark.parametrize("levels", [2, 4, 16, 64])
def test_e5_product_grid_gives_exactly_log_m(levels):
    a, b = torch.cartesian_prod(torch.arange(levels), torch.arange(levels)).unbind(dim=1)
    joint = joint_distribution(a, b, levels)
    assert float(conditional_entropy(joint)) == pytest.approx(math.log(levels), abs=1e-12)
    assert float(mutual_information(joint)) == pytest.approx(0, abs=1e-12)


@quick
@given(seeds, level_counts)
def test_e6_names_of_levels_and_order_of_samples_do_not_matter(seed, levels):
    a, b = draw_codes(seed, levels)
    value = float(conditional_entropy(joint_distribution(a, b, levels)))
    g = generator(seed + 1)
    rename = torch.randperm(levels, generator=g)
    order = torch.randperm(a.numel(), generator=g)
    for c, d in ((rename[a], b), (a, rename[b]), (a[order], b[order])):
        other = float(conditional_entropy(joint_distribution(c, d, levels)))
        assert other == pytest.approx(value, abs=1e-12)


@quick
@given(seeds, st.integers(-10, 10), st.floats(0.01, 100))
def test_e6_scale_of_activations_does_not_matter(seed, power, factor):
    g = generator(seed)
    x = torch.randn(500, generator=g, dtype=torch.float64)
    y = x + torch.randn(500, generator=g, dtype=torch.float64)
    assert hard_dependency(x * 2.0**power, y) == hard_dependency(x, y)
    u = [real_codes(t, t.min(), t.max(), 16) for t in (x, y, x * factor)]
    value = float(soft_dependency(u[0], u[1], 16, 0.25))
    assert float(soft_dependency(u[2], u[1], 16, 0.25)) == pytest.approx(value, abs=1e-9)


@quick
@given(seeds, level_counts, st.integers(1, 399))
def test_e7_counts_of_shards_add_up_exactly(seed, levels, cut):
    a, b = draw_codes(seed, levels)
    counts = joint_counts(a, b, levels)
    parts = joint_counts(a[:cut], b[:cut], levels) + joint_counts(a[cut:], b[cut:], levels)
    assert torch.equal(parts, counts)
    assert counts.dtype == torch.int64
    assert torch.equal(counts.double() / counts.sum(), joint_distribution(a, b, levels))
    u = torch.stack([a, b]).double()
    shards = soft_joint_sums(*u[:, :cut], levels, 0.25) + soft_joint_sums(*u[:, cut:], levels, 0.25)
    torch.testing.assert_close(shards, soft_joint_sums(*u, levels, 0.25))


@quick
@given(seeds, st.sampled_from([float("nan"), float("inf"), 123.0]))
def test_e8_what_is_masked_does_not_count(seed, filler):
    g = generator(seed)
    x, y = torch.randn(2, 40, 6, generator=g)
    mask = torch.rand(40, generator=g) < 0.7
    mask[0] = True
    ranges = [(t[mask].amin(dim=0), t[mask].amax(dim=0)) for t in (x, y)]

    def dependency(a, b):
        u = [real_codes(t, *r, 16)[mask] for t, r in zip((a, b), ranges, strict=True)]
        return float(conditional_entropy(joint_distribution(*(hard_codes(v, 16) for v in u), 16)))

    filled = [t.masked_fill(~mask[:, None], filler) for t in (x, y)]
    assert dependency(*filled) == dependency(x, y)


def test_e11_more_noise_means_more_dependency():
    g = generator(0)
    x, noise = torch.randn(2, 100_000, generator=g, dtype=torch.float64)
    found = [hard_dependency(x, x + noise * std) for std in (0, 0.1, 0.3, 1, 3, 10, 100)]
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert all(b > a - 0.02 for a, b in itertools.pairwise(found))
    assert found[-1] > found[0] + 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: joint_counts(torch.zeros(3), torch.zeros(4), 2), "3 and 4 codes cannot be paired"),
        (lambda: joint_counts(torch.tensor([2]), torch.tensor([0]), 2), "from 0 to 1 are allowed"),
        (lambda: joint_counts(torch.tensor([-1]), torch.tensor([0]), 2), "codes from -1 to -1"),
        (lambda: joint_counts(torch.tensor([0.5]), torch.tensor([0.0]), 2), "are not all levels"),
        (lambda: joint_counts(torch.tensor([math.nan]), torch.tensor([0.0]), 2), "not all levels"),
        (
            lambda: joint_distribution(torch.zeros(0), torch.zeros(0), 2),
            "there are no codes to count",
        ),
        (lambda: conditional_entropy(torch.ones(2, 2)), "sums to 4.0; it must sum to 1"),
        (lambda: conditional_entropy(torch.full((2, 2), math.nan)), "sums to nan"),
        (lambda: conditional_entropy(torch.ones(2, 3) / 6), r"shape \(2, 3\)"),
        (lambda: conditional_entropy(torch.ones(2, 2, dtype=torch.int64)), "torch.int64"),
        (lambda: dependency_sum([1.0], 1, 0), "layers 1 to 0 are not a range of the 2 layers"),
        (lambda: dependency_average([1.0], 0, 2), "layers 0 to 2 are not a range"),
    ],
)
def test_faults_name_what_was_given(fault, message):
    with pytest.raises(InputError, match=message):
        fault()

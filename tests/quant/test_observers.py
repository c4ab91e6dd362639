"""Q6, Q12 and Q14: ranges, percentiles, merging."""

import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.observers import NonFiniteError, RangeObserver, check_percentiles

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
granularities = st.sampled_from(["tensor", "channel", "position"])
PERCENTILES = [1.0, 0.995, 0.99, 0.985, 0.98, 0.9, 0.6]


def draw(seed, samples=6, tokens=9, channels=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, tokens, channels, generator=generator)
    return x * torch.logspace(-1, 1, channels)


def draw_mask(seed, samples=6, tokens=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, tokens, generator=generator) < 0.6


def masked(granularity, seed):
    """A mask of tokens, or of whole samples for ranges per position."""
    mask = draw_mask(seed)
    mask[0] = True
    return mask[:, :1].expand(-1, 9) if granularity == "position" else mask


def observe(granularity, x, mask=None, index=None, **options):
    observer = RangeObserver(granularity, **options)
    observer.update(x, mask, index if index is not None else range(len(x)))
    return observer


def reference_quantile(values, q):
    """Quantile with linear interpolation between ranks, over a plain sorted list."""
    values = sorted(values)
    place = q * (len(values) - 1)
    rank = int(place)
    after = values[min(rank + 1, len(values) - 1)]
    return values[rank] + (place - rank) * (after - values[rank])


def test_hand_computed_percentiles():
    x = torch.arange(101.0).reshape(1, 101, 1)  # of a sample's 101 tokens all are kept
    low, high = observe("tensor", x, max_tokens=101, expected_samples=1).ranges([1.0, 0.99, 0.975])
    torch.testing.assert_close(low, torch.tensor([0.0, 1.0, 2.5]))
    torch.testing.assert_close(high, torch.tensor([100.0, 99.0, 97.5]))


@quick
@given(seeds, granularities)
def test_q6_p_1_is_exactly_min_and_max_and_ranges_are_nested(seed, granularity):
    x, mask = draw(seed), masked(granularity, seed)
    observer = observe(
        granularity, x, mask, max_tokens=12, expected_samples=6
    )  # the reservoir overflows
    low, high = observer.ranges(PERCENTILES)
    taken = x[mask]
    expected = {
        "tensor": (taken.min(), taken.max()),
        "channel": (taken.amin(dim=0), taken.amax(dim=0)),
        "position": (
            x[mask[:, 0]].amin(dim=(0, 2))[:, None],
            x[mask[:, 0]].amax(dim=(0, 2))[:, None],
        ),
    }[granularity]
    assert torch.equal(low[0], expected[0])
    assert torch.equal(high[0], expected[1])
    assert low.shape == (len(PERCENTILES), *expected[0].shape)
    assert (low.diff(dim=0) >= 0).all()
    assert (high.diff(dim=0) <= 0).all()
    assert (low <= high).all()
    assert torch.equal(observer.absmax(), torch.maximum(-low[0], high[0]))
    assert low.dtype == high.dtype == torch.float32


@quick
@given(seeds, granularities)
def test_percentiles_equal_a_slow_reference(seed, granularity):
    x = draw(seed)
    low, high = observe(granularity, x).ranges([0.99, 0.9])
    pools = {
        "tensor": [x.flatten()],
        "channel": list(x.flatten(0, 1).T),
        "position": list(x.transpose(0, 1).flatten(1)),
    }[granularity]
    for row, p in enumerate([0.99, 0.9]):
        for pool, a, b in zip(pools, low[row].flatten(), high[row].flatten(), strict=True):
            assert a.item() == pytest.approx(
                reference_quantile(pool.tolist(), 1 - p), rel=1e-5, abs=1e-6
            )
            assert b.item() == pytest.approx(
                reference_quantile(pool.tolist(), p), rel=1e-5, abs=1e-6
            )
            library = torch.quantile(pool, torch.tensor([1 - p, p]))
            torch.testing.assert_close(torch.stack([a, b]), library)


@quick
@given(seeds, granularities)
def test_channel_range_is_exact_whatever_the_granularity(seed, granularity):
    x = draw(seed)
    low, high = observe(granularity, x, max_tokens=6, expected_samples=6).channel_range()
    assert torch.equal(low, x.amin(dim=(0, 1)))
    assert torch.equal(high, x.amax(dim=(0, 1)))


@quick
@given(seeds, granularities, st.permutations(range(6)), st.integers(1, 5))
def test_batches_order_and_shards_do_not_matter(seed, granularity, order, cut):
    x, mask = draw(seed), masked(granularity, seed)
    options = {"seed": 3, "max_tokens": 12, "expected_samples": 6}
    whole = observe(granularity, x, mask, **options)
    one_by_one = RangeObserver(granularity, **options)
    for i in order:
        one_by_one.update(x[i : i + 1], mask[i : i + 1], [i])
    shards = [
        observe(granularity, x[list(s)], mask[list(s)], list(s), **options)
        for s in (order[:cut], order[cut:])
    ]
    for first, second in itertools.permutations(shards):
        merged = RangeObserver.from_state(first.state())
        merged.merge(second)
        for other in (one_by_one, merged):
            for a, b in zip(whole.ranges(PERCENTILES), other.ranges(PERCENTILES), strict=True):
                assert torch.equal(a, b)
            for a, b in zip(whole.channel_range(), other.channel_range(), strict=True):
                assert torch.equal(a, b)
            assert str(whole.state()) == str(other.state())


@quick
@given(seeds, granularities)
def test_q12_state_survives_a_checkpoint(seed, granularity):
    observer = observe(granularity, draw(seed))
    buffer = io.BytesIO()
    torch.save(observer.state(), buffer)
    buffer.seek(0)
    again = RangeObserver.from_state(torch.load(buffer, weights_only=True))
    for a, b in zip(observer.ranges(PERCENTILES), again.ranges(PERCENTILES), strict=True):
        assert torch.equal(a, b)
    empty = RangeObserver.from_state(RangeObserver(granularity).state())
    empty.merge(observer)
    assert torch.equal(empty.ranges([1.0])[0], observer.ranges([1.0])[0])


@quick
@given(seeds, st.sampled_from(["tensor", "channel"]), st.sampled_from([float("nan"), 1e30, -7.0]))
def test_q14_padding_changes_no_range(seed, granularity, filler):
    x, mask = draw(seed), draw_mask(seed)
    mask[0] = True
    clean = observe(granularity, x, mask)
    filled = observe(granularity, x.masked_fill(~mask[..., None], filler), mask)
    # other padding, on the other side and longer, with the tokens in the same order
    longer, longer_mask = torch.full((6, 14, 5), filler), torch.zeros(6, 14, dtype=torch.bool)
    for row in range(6):
        count = int(mask[row].sum())
        longer[row, 14 - count :] = x[row, mask[row]]
        longer_mask[row, 14 - count :] = True
    for other in (filled, observe(granularity, longer, longer_mask)):
        for a, b in zip(clean.ranges(PERCENTILES), other.ranges(PERCENTILES), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_experts_pooled_have_the_range_of_all_their_tokens(granularity):
    """Two of one layer, each of which saw other tokens of the same samples."""
    x, mask = draw(0), draw_mask(0)
    parts = [observe(granularity, x + shift, m) for shift, m in ((0, mask), (3, ~mask))]
    pool = RangeObserver.pooled(parts)
    values = torch.cat([x[mask], (x + 3)[~mask]])
    assert pool.tokens == len(values) == 6 * 9
    columns = [values.flatten()] if granularity == "tensor" else list(values.T)
    for row, (low, high) in enumerate(zip(*pool.ranges([1.0, 0.9, 0.8]), strict=True)):
        p = [1.0, 0.9, 0.8][row]
        for column, a, b in zip(columns, low.flatten(), high.flatten(), strict=True):
            assert float(a) == pytest.approx(reference_quantile(column.tolist(), 1 - p), abs=1e-5)
            assert float(b) == pytest.approx(reference_quantile(column.tolist(), p), abs=1e-5)


def test_samples_without_a_token_are_passed_over():
    x, mask = draw(0), torch.zeros(6, 9, dtype=torch.bool)
    mask[2] = True
    for granularity in ("tensor", "channel", "position"):
        assert observe(granularity, x, mask).state()["samples"] == [2]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "position"])
@pytest.mark.parametrize("count", [1, 5, 13, 10**6])
def test_a_sample_is_evenly_spaced_in_the_whole_reservoir(granularity, count):
    observer = RangeObserver(granularity, max_tokens=200, expected_samples=7)
    observer.update(torch.randn(7, 33, 11), None, list(range(7)))
    kept = [observer._kept[index] for index in range(7)]
    columns = [x[:, n].tolist() for x in kept for n in range(x.shape[1])]
    rows = [x[n].tolist() for x in kept for n in range(x.shape[0])]
    values = [value for line in (columns if granularity == "position" else rows) for value in line]
    step = max(1, len(values) // count)
    assert observer.sample(count).tolist() == values[::step]


def test_reservoir_is_divided_among_samples_and_seeded():
    x = draw(0, samples=4, tokens=50)
    observer = observe("channel", x, max_tokens=40, expected_samples=4, seed=0)
    assert [len(kept) for kept in observer.state()["kept"]] == [10] * 4
    other = observe("channel", x, max_tokens=40, expected_samples=4, seed=1)
    assert not torch.equal(observer.state()["kept"][0], other.state()["kept"][0])
    assert torch.equal(observer.ranges([1.0])[0], other.ranges([1.0])[0])
    per_position = observe("position", x, max_tokens=40, expected_samples=4)
    assert [tuple(kept.shape) for kept in per_position.state()["kept"]] == [(50, 1)] * 4


def test_position_with_few_values_stays_inside_its_exact_range():
    observer = observe("position", draw(0), max_tokens=1, expected_samples=6)
    (low, high), (exact_low, exact_high) = observer.ranges([0.98]), observer.ranges([1.0])
    assert (low >= exact_low).all()
    assert (high <= exact_high).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_activation_names_the_sample(value):
    x = draw(0)
    x[3, 4, 1] = value
    with pytest.raises(NonFiniteError, match="1 of 45 values of sample 13 are NaN or infinite"):
        observe("channel", x, index=range(10, 16))


@pytest.mark.parametrize("percentile", [0.5, 0.0, -1.0, 1.0001, 2.0, float("nan")])
def test_percentile_outside_half_to_one(percentile):
    with pytest.raises(InputError, match=r"percentile .* is not allowed; more than 0.5, at most 1"):
        check_percentiles([1.0, percentile])
    with pytest.raises(InputError, match="percentile"):
        observe("tensor", draw(0)).ranges([percentile])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda o: o.ranges([]), "no percentile is given"),
        (lambda o: o.ranges([1.0]), "no token has been observed"),
        (lambda o: o.absmax(), "no token has been observed"),
        (lambda o: o.update(torch.zeros(2, 3), None, [0, 1]), r"shape \(2, 3\) came with 2 sample"),
        (lambda o: o.update(draw(0), None, [0]), "came with 1 sample numbers"),
        (
            lambda o: o.update(draw(0), draw_mask(0), range(6)),
            "ranges per position need every token",
        ),
        (
            lambda o: o.merge(RangeObserver("tensor")),
            "observers of different kinds cannot be merged",
        ),
        (
            lambda o: [o.update(draw(0, tokens=t), None, range(6)) for t in (9, 8)],
            "8 positions follow",
        ),
        (lambda o: RangeObserver("token"), "granularity 'token' is not known; allowed: 'tensor'"),
    ],
)
def test_faults_name_what_was_given(fault, message):
    with pytest.raises(InputError, match=message):
        fault(RangeObserver("position"))

"""Q1-Q5, Q7-Q10 and Q13 on the pure functions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.quant.primitives import (
    affine_qparams,
    dequantize,
    fake_quantize,
    fake_quantize_symmetric,
    quantize,
    quantize_symmetric,
    symmetric_scale,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)
widths = st.integers(2, 8)
seeds = st.integers(0, 2**31)
sizes = st.sampled_from([1e-4, 1.0, 37.0, 1e4])
values = st.floats(-100, 100, width=32)
ranges = st.tuples(values, values).map(sorted).filter(lambda r: r[1] - r[0] > 1e-3)


def draw(seed, *shape, size=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype) * size


def minmax(x, dim):
    return x.amin(dim=dim), x.amax(dim=dim)


def reference(x, low, high, num_bits):
    """Plain loop over one range, in Python floats (float64), rounding half to even."""
    low, high, levels = min(low, 0.0), max(high, 0.0), 2**num_bits
    scale = max(
        (high - low) / (levels - 1), 1e-6 * max(-low, high), torch.finfo(torch.float64).tiny
    )
    zero_point = min(max(round(-low / scale), 0), levels - 1)
    codes = [min(max(round(v / scale) + zero_point, 0), levels - 1) for v in x.tolist()]
    return codes, [(c - zero_point) * scale for c in codes]


def tie_free(x, low, high, num_bits):
    """Whether no element and no bound lies within 1e-3 steps of a midpoint between codes."""
    scale, _ = affine_qparams(low, high, num_bits)
    places = torch.cat([x.flatten(), low.flatten(), high.flatten()]) / scale
    return bool(((places - places.floor() - 0.5).abs() > 1e-3).all())


def test_hand_computed_codes():
    low, high = torch.tensor(-5.0), torch.tensor(10.0)
    scale, zero_point = affine_qparams(low, high, 4)
    assert (scale.item(), zero_point.item()) == (1.0, 5.0)
    x = torch.tensor([-9.0, -5.0, -0.5, 0.5, 1.5, 2.6, 10.0, 99.0])
    assert quantize(x, scale, zero_point, 4).tolist() == [0, 0, 5, 5, 7, 8, 15, 15]
    assert fake_quantize(x, low, high, 4).tolist() == [-5, -5, 0, 0, 2, 3, 10, 10]


def test_symmetric_scale_is_that_of_compressed_tensors():
    scale = symmetric_scale(torch.tensor(15.0), 4)
    assert scale.item() == 2.0
    x = torch.tensor([-99.0, -15.0, -3.0, 0.9, 5.0, 15.0, 99.0])
    assert quantize_symmetric(x, scale, 4).tolist() == [-8, -8, -2, 0, 2, 7, 7]
    assert fake_quantize_symmetric(x, torch.tensor(15.0), 4).tolist() == [
        -16,
        -16,
        -4,
        0,
        4,
        14,
        14,
    ]


@quick
@given(seeds, ranges, widths)
def test_equals_a_plain_float64_loop(seed, bounds, num_bits):
    x = draw(seed, 64, size=60, dtype=torch.float64)
    low, high = (torch.tensor(b, dtype=torch.float64) for b in bounds)
    codes, expected = reference(x, *bounds, num_bits)
    assert quantize(x, *affine_qparams(low, high, num_bits), num_bits).tolist() == codes
    assert fake_quantize(x, low, high, num_bits).tolist() == expected
    if tie_free(x, low, high, num_bits):
        single = fake_quantize(x.float(), low.float(), high.float(), num_bits)
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(single.double(), expected, rtol=1e-5, atol=1e-6)


@quick
@given(seeds, widths, sizes)
def test_q1_codes_are_levels(seed, num_bits, size):
    x = draw(seed, 400, 3, size=size)
    scale, zero_point = affine_qparams(*minmax(x[:200], 0), num_bits)
    codes = quantize(x, scale, zero_point, num_bits)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= 0
    assert codes.max() <= 2**num_bits - 1
    x_q = fake_quantize(x, *minmax(x[:200], 0), num_bits)
    assert max(len(x_q[:, c].unique()) for c in range(3)) <= 2**num_bits
    assert torch.equal(x_q, dequantize(codes, scale, zero_point))


@quick
@given(seeds, st.sampled_from([2, 3, 4, 6, 8, 16]), sizes)
def test_q2_idempotent(seed, num_bits, size):
    x = draw(seed, 50, 4, size=size)
    low, high = minmax(x[:25], 0)
    x_q = fake_quantize(x, low, high, num_bits)
    assert torch.equal(fake_quantize(x_q, low, high, num_bits), x_q)
    x_q = fake_quantize_symmetric(x, high.abs(), num_bits)
    assert torch.equal(fake_quantize_symmetric(x_q, high.abs(), num_bits), x_q)


@quick
@given(seeds, ranges, widths)
def test_q3_monotone(seed, bounds, num_bits):
    x = draw(seed, 500, size=60).sort().values
    assert (fake_quantize(x, *map(torch.tensor, bounds), num_bits).diff() >= 0).all()
    assert (fake_quantize_symmetric(x, torch.tensor(bounds[1]).abs(), num_bits).diff() >= 0).all()


@quick
@given(ranges, widths)
def test_q4_error_at_most_half_a_step_inside(bounds, num_bits):
    low, high = (torch.tensor(b, dtype=torch.float64) for b in bounds)
    x = torch.linspace(min(bounds[0], 0.0), max(bounds[1], 0.0), 997, dtype=torch.float64)
    scale, _ = affine_qparams(low, high, num_bits)
    assert ((x - fake_quantize(x, low, high, num_bits)).abs() <= scale / 2 * (1 + 1e-5)).all()
    error = (x.float() - fake_quantize(x.float(), low.float(), high.float(), num_bits)).abs()
    rounding = 4 * torch.finfo(torch.float32).eps * x.abs().max()
    assert (error <= scale / 2 * (1 + 1e-5) + rounding).all()


@quick
@given(ranges, widths, st.floats(1.0, 1e6))
def test_q5_outside_is_the_end_of_the_range(bounds, num_bits, distance):
    low, high = (torch.tensor(b, dtype=torch.float64) for b in bounds)
    end_low, end_high = low.clamp_max(0), high.clamp_min(0)
    if not tie_free(end_low, low, high, num_bits):
        return  # then q(high) may be one code below the last (docs/paper.md)
    outside = fake_quantize(
        torch.stack([end_low - distance, end_high + distance]), low, high, num_bits
    )
    assert torch.equal(
        outside, fake_quantize(torch.stack([end_low, end_high]), low, high, num_bits)
    )


@quick
@given(seeds, sizes)
def test_q7_sixteen_bits_are_almost_exact(seed, size):
    x = draw(seed, 300, 3, size=size)
    low, high = minmax(x, 0)
    error = (x - fake_quantize(x, low, high, 16)).abs().amax(dim=0)
    assert (error < 1e-4 * (high - low)).all()


@pytest.mark.parametrize("constant", [0.0, 3.7, -3.7, 1e-30, -1e30, 65504.0])
@pytest.mark.parametrize("num_bits", [2, 4, 8, 16])
def test_q8_constant_channel(constant, num_bits):
    x = torch.full((5,), constant)
    x_q = fake_quantize(x, x.amin(), x.amax(), num_bits)
    torch.testing.assert_close(x_q, x, rtol=1e-5, atol=0.0)
    codes = quantize(x, *affine_qparams(x.amin(), x.amax(), num_bits), num_bits)
    assert len(codes.unique()) == 1


@quick
@given(seeds, widths, st.integers(-8, 8))
def test_q9_channels_do_not_mix(seed, num_bits, power):
    x = draw(seed, 20, 6)
    low, high = minmax(x[:10], 0)
    x_q = fake_quantize(x, low, high, num_bits)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    permuted = fake_quantize(x[:, order], low[order], high[order], num_bits)
    assert torch.equal(permuted, x_q[:, order])
    factor = torch.ones(6)
    factor[2] = 2.0**power
    assert torch.equal(
        fake_quantize(x * factor, low * factor, high * factor, num_bits), x_q * factor
    )


@quick
@given(seeds, widths)
def test_q10_square_input_uses_the_axis_of_the_bounds(seed, num_bits):
    x = draw(seed, 2, 5, 5)  # T == D
    low, high = minmax(x.flatten(0, 1), 0)
    per_channel = fake_quantize(x, low, high, num_bits)
    per_position = fake_quantize(x, low[:, None], high[:, None], num_bits)
    for i in range(5):
        expected = fake_quantize(x[:, :, i], low[i], high[i], num_bits)
        assert torch.equal(per_channel[:, :, i], expected)
        expected = fake_quantize(x[:, i, :], low[i], high[i], num_bits)
        assert torch.equal(per_position[:, i, :], expected)


@quick
@given(seeds, widths)
def test_q13_tokens_together_equal_tokens_one_by_one(seed, num_bits):
    x = draw(seed, 1, 7, 5)
    low, high = minmax(x.flatten(0, 1), 0)
    single = [fake_quantize(x[:, t : t + 1], low, high, num_bits) for t in range(7)]
    assert torch.equal(torch.cat(single, dim=1), fake_quantize(x, low, high, num_bits))

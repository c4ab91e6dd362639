"""Q8 and Q11: gradients of fake quantization, and that they change no value."""

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
    round_ste,
)

quick = settings(max_examples=60, deadline=None, derandomize=True)
widths = st.integers(2, 8)
seeds = st.integers(0, 2**31)
values = st.floats(-100, 100, width=32)
ranges = st.tuples(values, values).map(sorted).filter(lambda r: r[1] - r[0] > 1e-3)


def draw(seed, *shape, size=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype) * size


@pytest.mark.parametrize("num_bits", [4, 16])
def test_q8_values_never_seen_in_a_zero_channel_stay_finite(num_bits):
    x = torch.tensor([0.0, 1e30, -1e30], requires_grad=True)
    zero = torch.zeros((), requires_grad=True)
    x_q = fake_quantize(x, zero, zero, num_bits)
    assert x_q.detach().abs().max() < 1e-30
    gradients = torch.autograd.grad(x_q.sum(), (x, zero))
    assert all(g.isfinite().all() for g in gradients)
    x_q = fake_quantize_symmetric(x, zero, num_bits)
    assert x_q.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(x_q.sum(), (x, zero)))


@quick
@given(seeds, widths, ranges)
def test_q11_straight_through_inside_and_nothing_outside(seed, num_bits, bounds):
    low, high = map(torch.tensor, bounds)
    x = draw(seed, 200, size=80).requires_grad_()
    (gradient,) = torch.autograd.grad(fake_quantize(x, low, high, num_bits).sum(), x)
    inside = (x > low.clamp_max(0)) & (x < high.clamp_min(0))
    assert torch.equal(gradient, inside.float())
    (gradient,) = torch.autograd.grad(fake_quantize_symmetric(x, high.abs(), num_bits).sum(), x)
    assert torch.equal(gradient, (x.abs() <= high.abs()).float())
    (gradient,) = torch.autograd.grad(round_ste(x).sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


@quick
@given(seeds, widths, st.sampled_from([(), (4,), (6, 1), (3, 1, 1), (1, 6, 4)]))
def test_gradients_do_not_change_a_bit(seed, num_bits, shape):
    x = draw(seed, 3, 6, 4, size=3)
    low, high = -draw(seed + 1, *shape).abs(), draw(seed + 2, *shape).abs()
    with torch.no_grad():
        plain = fake_quantize(x, low, high, num_bits)
        plain_symmetric = fake_quantize_symmetric(x, high, num_bits)
    leaves = [t.clone().requires_grad_() for t in (x, low, high)]
    assert torch.equal(fake_quantize(*leaves, num_bits), plain)
    assert torch.equal(fake_quantize_symmetric(leaves[0], leaves[2], num_bits), plain_symmetric)
    assert torch.equal(x, leaves[0])  # nothing was written into the input


@quick
@given(seeds, widths)
def test_bounds_get_the_rounding_error_inside_and_everything_outside(seed, num_bits):
    x = draw(seed, 40, dtype=torch.float64)
    weight = draw(seed + 1, 40, dtype=torch.float64)
    low = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    high = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    x_q = fake_quantize(x, low, high, num_bits)
    to_low, to_high = torch.autograd.grad((weight * x_q).sum(), (low, high))
    steps, scale = 2**num_bits - 1, (1.1 + 0.7) / (2**num_bits - 1)
    expected_low = expected_high = 0.0
    for value, quantized, w in zip(x.tolist(), x_q.tolist(), weight.tolist(), strict=True):
        if value < -0.7:
            expected_low += w
        elif value > 1.1:
            expected_high += w
        else:
            expected_high += w * (quantized - value) / scale / steps
            expected_low -= w * (quantized - value) / scale / steps
    torch.testing.assert_close(to_low.item(), expected_low)
    torch.testing.assert_close(to_high.item(), expected_high)


def test_symmetric_bound_gets_its_code_outside():
    x = torch.tensor([-20.0, 3.0, 20.0])
    absmax = torch.tensor(7.5, requires_grad=True)
    for index, slope in enumerate([-8 / 7.5, 0.0, 7 / 7.5]):
        (gradient,) = torch.autograd.grad(fake_quantize_symmetric(x[index], absmax, 4), absmax)
        assert gradient.item() == pytest.approx(slope)


def test_bound_on_the_wrong_side_of_zero_gets_no_gradient():
    x = torch.tensor([-1.0, 0.5, 2.0, 9.0])
    low, high = (torch.tensor(v, requires_grad=True) for v in (1.0, 4.0))
    to_low, to_high = torch.autograd.grad(fake_quantize(x, low, high, 4).sum(), (low, high))
    assert to_low == 0
    assert to_high != 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x = draw(0, 4, 8, size=3).to(dtype)
    low, high = torch.tensor(-2.9), torch.tensor(3.1)
    scale, zero_point = affine_qparams(low, high, 8, dtype)
    codes = quantize(x.float(), scale, zero_point, 8)
    expected = dequantize(codes, scale, zero_point).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fake_quantize(x, low, high, 8), expected)
        assert fake_quantize_symmetric(x, high, 8).dtype == dtype
    x.requires_grad_()
    low.requires_grad_()
    out = fake_quantize(x, low, high, 8)
    assert torch.equal(out, expected)
    to_x, to_low = torch.autograd.grad(out.sum(), (x, low))
    assert (to_x.dtype, to_low.dtype) == (dtype, torch.float32)

"""Weight quantization: ranges per output channel or group, codes, clip ratios."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.primitives import dequantize, fake_quantize
from qvlm_lightning.quant.weights import fake_quantize_weight, weight_codes, weight_ranges

quick = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
widths = st.integers(2, 8)
groups = st.sampled_from([None, 2, 4, 12])


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_hand_computed_rows():
    weight = torch.tensor([[-5.0, 0.4, 2.6, 10.0], [0.0, 0.0, 0.0, 0.0]])
    assert fake_quantize_weight(weight, 4, None, symmetric=False).tolist() == [
        [-5, 0, 3, 10],
        [0] * 4,
    ]
    codes, scale, zero_point = weight_codes(weight, 4, None, symmetric=False)
    assert codes.tolist() == [[0, 5, 8, 15], [0, 0, 0, 0]]
    assert (scale[0].tolist(), zero_point[0].tolist()) == ([1.0], [5.0])


@quick
@given(seeds, widths, groups, st.booleans())
def test_equals_a_loop_over_groups(seed, num_bits, group_size, symmetric):
    weight = draw(seed, 3, 12)
    result = fake_quantize_weight(weight, num_bits, group_size, symmetric)
    size = group_size or 12
    for row in range(3):
        for start in range(0, 12, size):
            piece = weight[row, start : start + size]
            expected = fake_quantize_weight(piece[None], num_bits, None, symmetric)[0]
            assert torch.equal(result[row, start : start + size], expected)
            if not symmetric:
                assert torch.equal(
                    expected, fake_quantize(piece, piece.min(), piece.max(), num_bits)
                )


@quick
@given(seeds, widths, groups, st.booleans(), st.booleans())
def test_q1_q12_codes_are_levels_and_rebuild_the_weight(
    seed, num_bits, group_size, symmetric, clip
):
    weight = draw(seed, 3, 12)
    ratio = draw(seed + 1, 3, 1).abs() if clip else None
    codes, scale, zero_point = weight_codes(weight, num_bits, group_size, symmetric, ratio)
    assert codes.dtype == torch.int32
    least = -(2 ** (num_bits - 1)) if symmetric else 0
    assert codes.min() >= least
    assert codes.max() <= least + 2**num_bits - 1
    grouped = codes.reshape(3, scale.shape[1], -1)
    rebuilt = dequantize(grouped, scale[..., None], zero_point[..., None]).reshape(3, 12)
    assert torch.equal(
        rebuilt, fake_quantize_weight(weight, num_bits, group_size, symmetric, ratio)
    )


@quick
@given(seeds, widths, groups, st.booleans())
def test_clip_ratio_learns_and_the_value_does_not_depend_on_it(
    seed, num_bits, group_size, symmetric
):
    weight = draw(seed, 3, 12)
    ratio = (0.3 + 0.7 * draw(seed + 1, 3, 1).abs().clamp_max(1)).requires_grad_()
    learned = fake_quantize_weight(weight, num_bits, group_size, symmetric, ratio)
    with torch.no_grad():
        plain = fake_quantize_weight(weight, num_bits, group_size, symmetric, ratio)
    assert torch.equal(learned, plain)
    (gradient,) = torch.autograd.grad((learned - weight).square().sum(), ratio)
    assert gradient.shape == (3, 1)
    assert gradient.isfinite().all()
    low, high = weight_ranges(weight, group_size, symmetric, ratio)
    full_low, full_high = weight_ranges(weight, group_size, symmetric)
    assert torch.equal(low, full_low * ratio[..., None])
    assert torch.equal(high, full_high * ratio[..., None])


def test_clip_ratio_far_below_one_is_driven_up():
    weight = draw(0, 2, 64)
    ratio = torch.full((2, 1), 0.2, requires_grad=True)
    error = (fake_quantize_weight(weight, 4, None, False, ratio) - weight).square().sum()
    (gradient,) = torch.autograd.grad(error, ratio)
    assert (gradient < 0).all()


def test_gradient_reaches_the_weight_as_if_it_were_not_quantized():
    weight = draw(0, 3, 12).requires_grad_()
    factor = draw(1, 3, 12)
    out = fake_quantize_weight(weight, 4, 4, symmetric=False)
    (gradient,) = torch.autograd.grad((out * factor).sum(), weight)
    assert torch.equal(gradient, factor)


@pytest.mark.parametrize("make", [fake_quantize_weight, weight_codes])
def test_group_that_does_not_divide(make):
    with pytest.raises(
        InputError, match="group size 5 does not divide 12 inputs; choose a divisor"
    ):
        make(torch.zeros(2, 12), 4, 5, symmetric=False)

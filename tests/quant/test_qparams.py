"""Scales as a bfloat16 or float16 model stores them: whoever reads them finds the same codes."""

from fractions import Fraction

import pytest
import torch

from qvlm_lightning.quant.primitives import fake_quantize
from qvlm_lightning.quant.qparams import affine_qparams, as_stored, symmetric_scale
from qvlm_lightning.quant.weights import fake_quantize_weight, weight_codes

NARROW = [torch.bfloat16, torch.float16]


def test_hand_computed_scale():
    """0.1 in bfloat16 is 205 / 2048; the zero point belongs to that scale."""
    scale, zero_point = affine_qparams(
        torch.tensor(-0.75), torch.tensor(0.75), 4, model_type=torch.bfloat16
    )
    assert float(scale) == 205 / 2048
    assert float(zero_point) == round(Fraction(3, 4) / Fraction(205, 2048))
    assert float(symmetric_scale(torch.tensor(0.75), 4, torch.bfloat16)) == 205 / 2048


@pytest.mark.parametrize("model_type", [None, torch.float32, torch.float64])
def test_other_types_leave_scales_alone(model_type):
    low, high = -torch.rand(50), torch.rand(50)
    plain = affine_qparams(low, high, 4)
    typed = affine_qparams(low, high, 4, model_type)
    assert torch.equal(plain[0], typed[0])
    assert torch.equal(plain[1], typed[1])


@pytest.mark.parametrize("model_type", NARROW)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 1e30])
def test_a_stored_scale_is_a_positive_number_of_its_type(model_type, size):
    scale = as_stored(torch.tensor([size]), model_type)
    assert torch.equal(scale.to(model_type).to(torch.float32), scale)
    assert bool((scale > 0).all())
    assert bool(scale.isfinite().all())


@pytest.mark.parametrize("model_type", NARROW)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 8])
def test_codes_follow_from_the_stored_scale(model_type, symmetric, group_size):
    """Code for code, from a weight and a scale that have been through a file of that type."""
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).to(model_type)
    codes, scale, zero_point = weight_codes(weight, 4, group_size, symmetric)
    stored = scale.to(model_type)
    least, most = (-8, 7) if symmetric else (0, 15)
    size = group_size or 32
    for row in range(6):
        for column in range(32):
            step = float(stored[row, column // size])
            steps = torch.tensor(float(weight[row, column])) / torch.tensor(step)
            code = round(float(steps)) + int(zero_point[row, column // size])
            assert int(codes[row, column]) == min(max(code, least), most)
    rebuilt = (codes.reshape(6, -1, size) - zero_point[..., None]) * stored.float()[..., None]
    fake = fake_quantize_weight(weight, 4, group_size, symmetric)
    assert torch.equal(rebuilt.reshape(6, 32).to(model_type), fake)


@pytest.mark.parametrize("model_type", NARROW)
def test_the_gradient_is_that_of_the_rounded_scale(model_type):
    """With and without gradients the same values; straight-through inside the range."""
    x = torch.linspace(-2, 2, 41).to(model_type)
    low, high = torch.tensor(-1.3), torch.tensor(1.1)
    plain = fake_quantize(x, low, high, 4)
    x = x.requires_grad_(True)
    learned = fake_quantize(x, low.requires_grad_(True), high.requires_grad_(True), 4)
    assert torch.equal(plain, learned)
    learned.sum().backward()
    inside = (x.float() > low) & (x.float() < high)
    assert torch.equal(x.grad, inside.to(model_type))

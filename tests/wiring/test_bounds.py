"""Gradients of learnable bounds: by hand, and as the slope of an error that is really measured."""

import pytest
import torch
from torch import Tensor, nn

from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.quant.primitives import fake_quantize, fake_quantize_symmetric

B, T, D = 2, 3, 4
SHAPES = {"tensor": (), "channel": (D,), "position": (T, 1)}


def quantizer(mode: str, shape: tuple[int, ...], low: Tensor, high: Tensor) -> ActivationQuantizer:
    made = ActivationQuantizer(4, mode, shape, 1)
    made.enabled = True
    made.set_range(low, high, 1.0)
    return made


def by_hand(x: float, low: float, high: float) -> tuple[float, float, float]:
    """Return the slopes of one quantized element in x, low and high (4 bits)."""
    if x < low:
        return 0.0, 1.0, 0.0
    if x > high:
        return 0.0, 0.0, 1.0
    scale = (high - low) / 15
    rounding = round(x / scale) - x / scale
    return 1.0, -rounding / 15, rounding / 15


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("through_x", [False, True])
def test_ratios_get_the_gradient_of_the_bounds_times_the_range(kind, through_x):
    """Also in front of frozen layers, where the input itself asks for no gradient."""
    generator = torch.Generator().manual_seed(0)
    shape = SHAPES[kind]
    low = -0.3 - torch.rand(shape, generator=generator)
    high = 0.3 + torch.rand(shape, generator=generator)
    made = quantizer("static_channel" if shape else "static_tensor", shape, low, high)
    made.low_ratio.requires_grad_(True)
    made.high_ratio.requires_grad_(True)
    with torch.no_grad():
        made.low_ratio.mul_(0.8)
        made.high_ratio.mul_(1.1)
    x = torch.randn(B, T, D, generator=generator).requires_grad_(through_x)
    weight = torch.randn(B, T, D, generator=generator)
    (made(x) * weight).sum().backward()
    expected = {n: torch.zeros(B, T, D) for n in ("x", "low", "high")}
    lows, highs = ((0.8 * low).expand(B, T, D), (1.1 * high).expand(B, T, D))
    for place in torch.cartesian_prod(torch.arange(B), torch.arange(T), torch.arange(D)).tolist():
        at = tuple(place)
        slopes = by_hand(float(x[at].detach()), float(lows[at]), float(highs[at]))
        for name, slope in zip(expected, slopes, strict=True):
            expected[name][at] = slope * weight[at]
    outside = (x < lows) | (x > highs)
    assert 3 < int(outside.sum()) < B * T * D - 3
    for found, name, bound in (
        (made.low_ratio.grad, "low", low),
        (made.high_ratio.grad, "high", high),
    ):
        slopes = (expected[name] * bound).sum_to_size(shape)
        torch.testing.assert_close(found, slopes, rtol=1e-4, atol=1e-6)
    if through_x:
        torch.testing.assert_close(x.grad, expected["x"])


def test_the_clip_ratio_of_a_token_gets_the_gradient_of_its_absmax():
    """Symmetric codes: a saturated value is code -8 or 7 times the scale, absmax / 7.5."""
    made = quantizer("dynamic_token", (), torch.tensor(-1.0), torch.tensor(1.0))
    made.high_ratio.requires_grad_(True)
    with torch.no_grad():
        made.high_ratio.fill_(0.6)
    x = torch.tensor([[[10.0, -7.0, 2.3, 0.3]], [[-5.0, 2.1, 1.1, -0.9]]])
    x.requires_grad_(True)
    made(x).sum().backward()
    expected = 0.0
    for token, absmax in ((x.detach()[0, 0], 10.0), (x.detach()[1, 0], 5.0)):
        top, scale = 0.6 * absmax, 0.6 * absmax / 7.5
        for value in token.tolist():
            if abs(value) > top:
                slope = (7 if value > 0 else -8) / 7.5
            else:
                slope = (min(round(value / scale), 7) - value / scale) / 7.5
            expected += slope * absmax
    assert float(made.high_ratio.grad) == pytest.approx(expected, rel=1e-5)
    # the absmax that the ratio belongs to is a constant
    assert x.grad.tolist() == [[[0, 0, 1, 1]], [[0, 1, 1, 1]]]


STEP = 0.02


def slope_of_error(error, at: float) -> float:
    """Central difference of a mean over so many values that the steps of rounding vanish."""
    with torch.no_grad():
        values = [float(error(torch.tensor(at + s, dtype=torch.float64))) for s in (-STEP, STEP)]
    return (values[1] - values[0]) / (2 * STEP)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("bound", [0.8, 1.5, 2.6])
@pytest.mark.parametrize("side", ["low", "high", "symmetric"])
def test_the_gradient_of_a_bound_is_the_slope_of_the_measured_error(bits, bound, side):
    """Mean squared error of normal values: too tight a bound wants out, too wide a one in."""
    places = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=torch.float64)
    x = torch.erfinv(2 * places - 1) * 2**0.5
    zero = torch.zeros((), dtype=torch.float64)

    def error(b: Tensor) -> Tensor:
        if side == "symmetric":
            return (fake_quantize_symmetric(x, b, bits) - x).square().mean()
        ends = (zero, b) if side == "high" else (-b, zero)
        half = x[x > 0] if side == "high" else x[x < 0]
        return (fake_quantize(half, *ends, bits) - half).square().mean()

    learned = torch.tensor(bound, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(error(learned), learned)
    assert float(gradient) == pytest.approx(slope_of_error(error, bound), rel=0.1, abs=2e-3)


def test_descent_on_both_bounds_finds_the_range_of_least_error():
    """From a range four times too wide, against a search over all ranges."""
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) + 0.5
    low, high = (nn.Parameter(torch.tensor(v)) for v in (-8.0, 10.0))
    optimizer = torch.optim.Adam([low, high], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (fake_quantize(x, low, high, 4) - x).square().mean().backward()
        optimizer.step()
    grid = torch.arange(0.5, 4.0, 0.1)
    errors = [float((fake_quantize(x, -a, b, 4) - x).square().mean()) for a in grid for b in grid]
    with torch.no_grad():
        found = float((fake_quantize(x, low, high, 4) - x).square().mean())
    assert found < 1.05 * min(errors)

"""Uniform quantization: qparams, codes, and fake quantization with learnable bounds.

Shapes: B batch, T tokens, D channels, O outputs, I inputs, G groups, M = 2^bits levels. Everything
is computed in float32 (float64 for float64 input), whatever autocast says; of a bfloat16 or float16
model the scale is first rounded to that type. Bounds broadcast against the tensor they belong to. A
width of 16 is a real 16-bit quantizer here; that 16 means "off" is the caller's convention.
"""

from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.quant.qparams import affine_qparams, compute_dtype, symmetric_scale

__all__ = [
    "affine_qparams",
    "dequantize",
    "fake_quantize",
    "fake_quantize_symmetric",
    "quantize",
    "quantize_symmetric",
    "round_ste",
    "symmetric_scale",
]


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if nothing had happened.

    Example:
        >>> round_ste(torch.tensor([0.5, 1.5, -0.7]))
        tensor([ 0.,  2., -1.])
    """
    return x + (x.round() - x).detach()


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, num_bits: int) -> Tensor:
    """Return the codes ``clamp(round(x / scale) + zero_point, 0, M - 1)``, as whole floats.

    Example:
        >>> quantize(torch.tensor([-9.0, 0.4, 2.5]), torch.tensor(1.0), torch.tensor(5.0), 4)
        tensor([0., 5., 7.])
    """
    codes = (x.to(compute_dtype(x, scale)) / scale).round() + zero_point
    return codes.clamp(0, 2**num_bits - 1)


def quantize_symmetric(x: Tensor, scale: Tensor, num_bits: int) -> Tensor:
    """Return the codes ``clamp(round(x / scale), -2^(b-1), 2^(b-1) - 1)``, as whole floats."""
    codes = (x.to(compute_dtype(x, scale)) / scale).round()
    return codes.clamp(-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | float = 0.0) -> Tensor:
    """Return ``(codes - zero_point) * scale``."""
    return (codes - zero_point) * scale


def fake_quantize(x: Tensor, low: Tensor, high: Tensor, num_bits: int) -> Tensor:
    """Quantize and dequantize on the range [low, high] (extended to contain 0).

    The gradient is straight-through: 1 to ``x`` inside the range and 0 outside; an element outside
    gives its whole gradient to the bound it exceeds, one inside gives its rounding error to both
    (LSQ). With or without gradients the values are the same to the bit.

    Args:
        x: any shape.
        low: lower bound, broadcastable to ``x``.
        high: upper bound, of the shape of ``low``.
        num_bits: width b.

    Returns:
        Tensor like ``x`` that takes at most 2^b values per range.

    Example:
        >>> fake_quantize(torch.tensor([-9.0, 0.4, 2.6]), torch.tensor(-5.0), torch.tensor(10.0), 4)
        tensor([-5., 0., 3.])
    """
    if torch.is_grad_enabled() and (x.requires_grad or low.requires_grad or high.requires_grad):
        out: Tensor = _AffineFakeQuantize.apply(x, low, high, num_bits)
        return out
    return _affine_values(x, low, high, num_bits)


def fake_quantize_symmetric(x: Tensor, absmax: Tensor, num_bits: int) -> Tensor:
    """Quantize and dequantize on [-absmax, absmax]; gradients as in :func:`fake_quantize`.

    The outermost codes stand for -1.0667 and 0.9333 times ``absmax`` at 4 bits, and saturated
    elements give their gradient to ``absmax`` with that factor.

    Example:
        >>> fake_quantize_symmetric(torch.tensor([-9.0, 0.4, 9.0]), torch.tensor(7.5), 4)
        tensor([-8., 0., 7.])
    """
    if torch.is_grad_enabled() and (x.requires_grad or absmax.requires_grad):
        out: Tensor = _SymmetricFakeQuantize.apply(x, absmax, num_bits)
        return out
    return _symmetric_values(x, absmax, num_bits)


def _affine_values(x: Tensor, low: Tensor, high: Tensor, num_bits: int) -> Tensor:
    scale, zero_point = affine_qparams(low, high, num_bits, x.dtype)
    return _snap(x, scale, *_shifted_range(zero_point, num_bits)).mul_(scale).to(x.dtype)


def _symmetric_values(x: Tensor, absmax: Tensor, num_bits: int) -> Tensor:
    scale = symmetric_scale(absmax, num_bits, x.dtype)
    return _snap(x, scale, *_signed_range(scale, num_bits)).mul_(scale).to(x.dtype)


def _snap(x: Tensor, scale: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Return ``clamp(round(x / scale), least, most)`` in one fresh tensor.

    These are codes minus the zero point: clamping them at shifted limits is exact and saves two
    passes. On a CPU ``clamp_`` with broadcast limits is eight times slower than what is done here.
    """
    steps = (x.to(scale.dtype) / scale).round_()
    return _clip(steps, least, most, out=steps)


def _clip(x: Tensor, least: Tensor, most: Tensor, out: Tensor | None = None) -> Tensor:
    clipped = torch.maximum(x, least, out=out)
    return torch.minimum(clipped, most, out=clipped)


def _shifted_range(zero_point: Tensor, num_bits: int) -> tuple[Tensor, Tensor]:
    return -zero_point, 2**num_bits - 1 - zero_point


def _signed_range(like: Tensor, num_bits: int) -> tuple[Tensor, Tensor]:
    half = 2 ** (num_bits - 1)
    return like.new_tensor(-half), like.new_tensor(half - 1)


class _AffineFakeQuantize(torch.autograd.Function):
    """Indicators are floats made in place: passes over booleans cost several times as much."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, num_bits: int) -> Tensor:
        ctx.save_for_backward(x, low, high)
        ctx.num_bits = num_bits
        return _affine_values(x, low, high, num_bits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, low, high = ctx.saved_tensors
        scale, zero_point = affine_qparams(low, high, ctx.num_bits, x.dtype)
        x, grad, dtype = x.to(scale.dtype), grad.to(scale.dtype), x.dtype
        top = high.clamp_min(0).to(scale.dtype)
        clipped = _clip(x, low.clamp_max(0).to(scale.dtype), top)
        inside = torch.eq(clipped, x, out=torch.empty_like(clipped))
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return inside.mul_(grad).to(dtype), None, None, None
        share = _snap(clipped, scale, *_shifted_range(zero_point, ctx.num_bits))
        # d x_q / d high inside, where d scale / d high = 1 / (M - 1); d x_q / d low is its negative
        share.sub_(clipped.div_(scale)).mul_(inside).div_(2**ctx.num_bits - 1)
        share.add_(torch.gt(x, top, out=clipped)).mul_(grad)
        to_high = share.sum_to_size(high.shape)
        grad_x = inside.mul_(grad)
        to_low = torch.sub(grad, grad_x, out=share).sum_to_size(low.shape) - to_high
        # a bound on the wrong side of 0 is replaced by 0 and gets no gradient
        to_low, to_high = to_low * (low <= 0), to_high * (high >= 0)
        return grad_x.to(dtype), to_low.to(low.dtype), to_high.to(high.dtype), None


class _SymmetricFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, absmax: Tensor, num_bits: int) -> Tensor:
        ctx.save_for_backward(x, absmax)
        ctx.num_bits = num_bits
        return _symmetric_values(x, absmax, num_bits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, absmax = ctx.saved_tensors
        scale = symmetric_scale(absmax, ctx.num_bits, x.dtype)
        x, grad, dtype = x.to(scale.dtype), grad.to(scale.dtype), x.dtype
        top = absmax.to(scale.dtype)
        clipped = _clip(x, -top, top)
        inside = torch.eq(clipped, x, out=torch.empty_like(clipped))
        if not ctx.needs_input_grad[1]:
            return inside.mul_(grad).to(dtype), None, None
        slope = _snap(x, scale, *_signed_range(scale, ctx.num_bits))
        slope.sub_(clipped.div_(scale).mul_(inside)).div_((2**ctx.num_bits - 1) / 2).mul_(grad)
        grad_x = inside.mul_(grad)
        return grad_x.to(dtype), slope.sum_to_size(absmax.shape).to(absmax.dtype), None

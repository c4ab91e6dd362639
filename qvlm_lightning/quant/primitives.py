"""Uniform quantization: qparams, codes, and fake quantization with learnable bounds.

Shapes: B batch, T tokens, D channels, O outputs, I inputs, G groups, M = 2^bits levels.
Everything is computed in float32 (float64 for float64 input), whatever autocast says. Bounds broadcast
against the tensor they belong to. A width of 16 is a real 16-bit quantizer here; that 16 means "off" is
the caller's convention.
"""

from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if nothing had happened.

    Example:
        >>> round_ste(torch.tensor([0.5, 1.5, -0.7]))
        tensor([ 0.,  2., -1.])
    """
    return x + (x.round() - x).detach()


def affine_qparams(low: Tensor, high: Tensor, num_bits: int) -> tuple[Tensor, Tensor]:
    """Return scale and integral zero point of a range, extended so that it contains 0.

    Args:
        low: smallest value, any shape.
        high: largest value, same shape.
        num_bits: width b, M = 2^b.

    Returns:
        ``scale = max((high - low) / (M - 1), 1e-6 max(|low|, |high|), tiny)`` and
        ``zero_point = round(-low / scale)`` in [0, M - 1], float32 or float64.

    Example:
        >>> affine_qparams(torch.tensor(-5.0), torch.tensor(10.0), 4)
        (tensor(1.), tensor(5.))
    """
    return level_qparams(low, high, 2**num_bits)


def level_qparams(low: Tensor, high: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Return :func:`affine_qparams` for any number of levels M."""
    dtype = _compute_dtype(low, high)
    low, high = low.to(dtype).clamp_max(0), high.to(dtype).clamp_min(0)
    floor = (1e-6 * torch.maximum(-low, high)).clamp_min(torch.finfo(dtype).tiny)
    scale = torch.maximum((high - low) / (levels - 1), floor)
    return scale, (-low / scale).round().clamp(0, levels - 1)


def symmetric_scale(absmax: Tensor, num_bits: int) -> Tensor:
    """Return ``absmax / ((2^b - 1) / 2)``, for codes in [-2^(b-1), 2^(b-1) - 1].

    Example:
        >>> symmetric_scale(torch.tensor(7.5), 4)
        tensor(1.)
    """
    dtype = _compute_dtype(absmax)
    scale = absmax.to(dtype) / _half_range(num_bits)
    return scale.clamp_min(torch.finfo(dtype).tiny)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, num_bits: int) -> Tensor:
    """Return the codes ``clamp(round(x / scale) + zero_point, 0, M - 1)``, as whole floats.

    Example:
        >>> quantize(torch.tensor([-9.0, 0.4, 2.5]), torch.tensor(1.0), torch.tensor(5.0), 4)
        tensor([0., 5., 7.])
    """
    codes = (x.to(_compute_dtype(x, scale)) / scale).round() + zero_point
    return codes.clamp(0, 2**num_bits - 1)


def quantize_symmetric(x: Tensor, scale: Tensor, num_bits: int) -> Tensor:
    """Return the codes ``clamp(round(x / scale), -2^(b-1), 2^(b-1) - 1)``, as whole floats."""
    codes = (x.to(_compute_dtype(x, scale)) / scale).round()
    return codes.clamp(*_signed_range(num_bits))


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | float = 0.0) -> Tensor:
    """Return ``(codes - zero_point) * scale``."""
    return (codes - zero_point) * scale


def fake_quantize(x: Tensor, low: Tensor, high: Tensor, num_bits: int) -> Tensor:
    """Quantize and dequantize on the range [low, high] (extended to contain 0).

    The gradient is straight-through: 1 to ``x`` inside the range and 0 outside; an element outside gives
    its whole gradient to the bound it exceeds, one inside gives its rounding error to both (LSQ). With or
    without gradients the values are the same to the bit.

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

    The outermost codes stand for -1.0667 and 0.9333 times ``absmax`` at 4 bits, and saturated elements
    give their gradient to ``absmax`` with that factor.

    Example:
        >>> fake_quantize_symmetric(torch.tensor([-9.0, 0.4, 9.0]), torch.tensor(7.5), 4)
        tensor([-8., 0., 7.])
    """
    if torch.is_grad_enabled() and (x.requires_grad or absmax.requires_grad):
        out: Tensor = _SymmetricFakeQuantize.apply(x, absmax, num_bits)
        return out
    return _symmetric_values(x, absmax, num_bits)


def weight_ranges(
    weight_OI: Tensor,
    group_size: int | None,
    symmetric: bool,
    clip_ratio_O1: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the range of each output channel, or of each group of inputs, times its clip ratio.

    Args:
        weight_OI: weight of a Linear layer.
        group_size: inputs per group; ``None`` for one range per output channel.
        symmetric: ranges [-absmax, absmax] instead of [min, max].
        clip_ratio_O1: factor on the ranges of each output channel; the gradient reaches it, and not the
            weight's extremes.

    Returns:
        low and high, [O, G, 1] (G = 1 without groups).

    Raises:
        InputError: the group size does not divide the inputs.
    """
    grouped_OGI = _grouped(weight_OI.detach(), group_size)
    grouped_OGI = grouped_OGI.to(_compute_dtype(weight_OI))
    low, high = grouped_OGI.amin(dim=-1, keepdim=True), grouped_OGI.amax(dim=-1, keepdim=True)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    if clip_ratio_O1 is None:
        return low, high
    return low * clip_ratio_O1[..., None], high * clip_ratio_O1[..., None]


def fake_quantize_weight(
    weight_OI: Tensor,
    num_bits: int,
    group_size: int | None,
    symmetric: bool,
    clip_ratio_O1: Tensor | None = None,
) -> Tensor:
    """Quantize and dequantize a weight [O, I] on its :func:`weight_ranges`.

    The result equals the dequantized :func:`weight_codes` to the bit.

    Example:
        >>> fake_quantize_weight(torch.tensor([[-5.0, 0.4, 10.0]]), 4, None, symmetric=False)
        tensor([[-5., 0., 10.]])
    """
    low, high = weight_ranges(weight_OI, group_size, symmetric, clip_ratio_O1)
    grouped_OGI = _grouped(weight_OI, group_size)
    if symmetric:
        return fake_quantize_symmetric(grouped_OGI, high, num_bits).reshape(weight_OI.shape)
    return fake_quantize(grouped_OGI, low, high, num_bits).reshape(weight_OI.shape)


@torch.no_grad()
def weight_codes(
    weight_OI: Tensor,
    num_bits: int,
    group_size: int | None,
    symmetric: bool,
    clip_ratio_O1: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes [O, I] int32, scale [O, G] and zero point [O, G] (0 if symmetric) of a weight."""
    low, high = weight_ranges(weight_OI, group_size, symmetric, clip_ratio_O1)
    grouped_OGI = _grouped(weight_OI, group_size)
    if symmetric:
        scale = symmetric_scale(high, num_bits)
        codes, zero_point = (
            quantize_symmetric(grouped_OGI, scale, num_bits),
            torch.zeros_like(scale),
        )
    else:
        scale, zero_point = affine_qparams(low, high, num_bits)
        codes = quantize(grouped_OGI, scale, zero_point, num_bits)
    return codes.reshape(weight_OI.shape).to(torch.int32), scale[..., 0], zero_point[..., 0]


def _grouped(weight_OI: Tensor, group_size: int | None) -> Tensor:
    outputs, inputs = weight_OI.shape
    size = inputs if group_size is None else group_size
    if size < 1 or inputs % size:
        raise InputError(
            f"group size {group_size} does not divide {inputs} inputs; choose a divisor"
        )
    return weight_OI.reshape(outputs, inputs // size, size)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    double = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def _half_range(num_bits: int) -> float:
    return (2**num_bits - 1) / 2


def _signed_range(num_bits: int) -> tuple[int, int]:
    return -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1


def _affine_values(x: Tensor, low: Tensor, high: Tensor, num_bits: int) -> Tensor:
    scale, zero_point = affine_qparams(low, high, num_bits)
    return _snap(x, scale, -zero_point, 2**num_bits - 1 - zero_point)


def _symmetric_values(x: Tensor, absmax: Tensor, num_bits: int) -> Tensor:
    scale = symmetric_scale(absmax, num_bits)
    least, most = _signed_range(num_bits)
    return _snap(x, scale, scale.new_tensor(least), scale.new_tensor(most))


def _snap(x: Tensor, scale: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Return ``clamp(round(x / scale), least, most) * scale`` in four passes over one fresh tensor.

    Codes minus zero point, so clamping against the shifted limits is exact and saves two passes.
    """
    steps = (x.to(scale.dtype) / scale).round_()
    return _clamp_(steps, least, most).mul_(scale).to(x.dtype)


def _clamp_(steps: Tensor, least: Tensor, most: Tensor) -> Tensor:
    if least.numel() == 1 and steps.device.type == "cpu":  # reading a number from a GPU would wait
        return steps.clamp_(float(least), float(most))
    return steps.clamp_(least, most)


class _AffineFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, num_bits: int) -> Tensor:
        ctx.save_for_backward(x, low, high)
        ctx.num_bits = num_bits
        return _affine_values(x, low, high, num_bits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, low, high = ctx.saved_tensors
        scale, zero_point = affine_qparams(low, high, ctx.num_bits)
        x = x.to(scale.dtype)
        below, above = x < low.clamp_max(0), x > high.clamp_min(0)
        grad_x = grad.masked_fill(below | above, 0.0) if ctx.needs_input_grad[0] else None
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_x, None, None, None
        steps = x / scale
        snapped = _clamp_(steps.round(), -zero_point, 2**ctx.num_bits - 1 - zero_point)
        # d x_q / d scale inside the range; scale = (high - low) / (M - 1)
        share = snapped.sub_(steps).div_(2**ctx.num_bits - 1).masked_fill_(below | above, 0.0)
        grad = grad.to(scale.dtype)
        # a bound on the wrong side of 0 is replaced by 0 and gets no gradient
        grad_low = (grad * (below.to(grad.dtype) - share)).sum_to_size(low.shape) * (low <= 0)
        grad_high = (grad * (above.to(grad.dtype) + share)).sum_to_size(high.shape) * (high >= 0)
        return grad_x, grad_low.to(low.dtype), grad_high.to(high.dtype), None


class _SymmetricFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, absmax: Tensor, num_bits: int) -> Tensor:
        ctx.save_for_backward(x, absmax)
        ctx.num_bits = num_bits
        return _symmetric_values(x, absmax, num_bits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, absmax = ctx.saved_tensors
        scale = symmetric_scale(absmax, ctx.num_bits)
        x = x.to(scale.dtype)
        outside = x.abs() > absmax
        grad_x = grad.masked_fill(outside, 0.0) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None
        steps = x / scale
        codes = steps.round().clamp_(*_signed_range(ctx.num_bits))
        slope = codes.sub_(steps.masked_fill_(outside, 0.0)).div_(_half_range(ctx.num_bits))
        return grad_x, (grad * slope).sum_to_size(absmax.shape).to(absmax.dtype), None

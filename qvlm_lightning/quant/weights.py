"""Quantization of weights: ranges per output channel or group of inputs, qparams and codes.

Shapes: O outputs, I inputs, G groups. Arithmetic as in :mod:`qvlm_lightning.quant.primitives`.
"""

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.primitives import (
    fake_quantize,
    fake_quantize_symmetric,
    quantize,
    quantize_symmetric,
)
from qvlm_lightning.quant.qparams import affine_qparams, compute_dtype, symmetric_scale


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
        clip_ratio_O1: factor on the ranges of each output channel; the gradient reaches it, and not
            the weight's extremes.

    Returns:
        low and high, [O, G, 1] (G = 1 without groups).

    Raises:
        InputError: the group size does not divide the inputs.
    """
    grouped_OGI = _grouped(weight_OI.detach(), group_size)
    grouped_OGI = grouped_OGI.to(compute_dtype(weight_OI))
    low, high = grouped_OGI.amin(dim=-1, keepdim=True), grouped_OGI.amax(dim=-1, keepdim=True)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    if clip_ratio_O1 is None:
        return low, high
    return low * clip_ratio_O1[..., None], high * clip_ratio_O1[..., None]


def half_ranges(
    low_OG1: Tensor, high_OG1: Tensor, num_bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Return the nearest ranges whose scales are numbers of float16; gradients pass unchanged.

    ``scale * (M - 1)`` and ``scale * zero_point`` are exact in float32, so that the qparams of the
    new range are that scale and the same zero point, to the bit.

    Args:
        low_OG1: see :func:`fake_quantize_weight_on`; float32.
        high_OG1: see there.
        num_bits: width b.
        symmetric: symmetric codes.

    Example:
        >>> low, high = torch.tensor([[[-0.1]]]), torch.tensor([[[0.1]]])
        >>> scale, _ = weight_qparams(*half_ranges(low, high, 4, False), 4, False, torch.float32)
        >>> torch.equal(scale, torch.tensor([[0.2 / 15]]).half().float())
        True
    """
    levels = 2**num_bits - 1
    if symmetric:
        high = symmetric_scale(high_OG1.detach(), num_bits, torch.float16) * (levels / 2)
        low = -high
    else:
        scale, zero_point = affine_qparams(
            low_OG1.detach(), high_OG1.detach(), num_bits, torch.float16
        )
        low, high = -zero_point * scale, (levels - zero_point) * scale
    return low + (low_OG1 - low_OG1.detach()), high + (high_OG1 - high_OG1.detach())


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
    return fake_quantize_weight_on(weight_OI, low, high, num_bits, symmetric)


def fake_quantize_weight_on(
    weight_OI: Tensor, low_OG1: Tensor, high_OG1: Tensor, num_bits: int, symmetric: bool
) -> Tensor:
    """Quantize and dequantize a weight [O, I] on given ranges.

    Args:
        weight_OI: weight of a Linear layer.
        low_OG1: lower bound of each output channel, or of each of G groups of its inputs.
        high_OG1: upper bound; with ``symmetric`` the only one that is used.
        num_bits: width b.
        symmetric: symmetric codes.
    """
    grouped_OGI = weight_OI.reshape(*low_OG1.shape[:2], -1)
    if symmetric:
        return fake_quantize_symmetric(grouped_OGI, high_OG1, num_bits).reshape(weight_OI.shape)
    return fake_quantize(grouped_OGI, low_OG1, high_OG1, num_bits).reshape(weight_OI.shape)


@torch.no_grad()
def weight_codes(
    weight_OI: Tensor,
    num_bits: int,
    group_size: int | None,
    symmetric: bool,
    clip_ratio_O1: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes [O, I] int32, scale and zero point [O, G] (0 if symmetric) of a weight."""
    low, high = weight_ranges(weight_OI, group_size, symmetric, clip_ratio_O1)
    scale, zero_point = weight_qparams(low, high, num_bits, symmetric, weight_OI.dtype)
    codes = weight_codes_on(weight_OI, scale, zero_point, num_bits, symmetric)
    return codes, scale, zero_point


@torch.no_grad()
def weight_qparams(
    low_OG1: Tensor, high_OG1: Tensor, num_bits: int, symmetric: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point [O, G] (0 if symmetric) of a weight's ranges [O, G, 1].

    Args:
        low_OG1: see :func:`fake_quantize_weight_on`.
        high_OG1: see there.
        num_bits: width b.
        symmetric: symmetric codes.
        dtype: of the weight, to which scales are rounded.
    """
    if symmetric:
        scale = symmetric_scale(high_OG1, num_bits, dtype)
        return scale[..., 0], torch.zeros_like(scale[..., 0])
    scale, zero_point = affine_qparams(low_OG1, high_OG1, num_bits, dtype)
    return scale[..., 0], zero_point[..., 0]


@torch.no_grad()
def weight_codes_on(
    weight_OI: Tensor, scale_OG: Tensor, zero_point_OG: Tensor, num_bits: int, symmetric: bool
) -> Tensor:
    """Return the codes [O, I] int32 of a weight for the qparams of its :func:`weight_qparams`."""
    grouped_OGI = weight_OI.reshape(*scale_OG.shape, -1)
    if symmetric:
        codes = quantize_symmetric(grouped_OGI, scale_OG[..., None], num_bits)
    else:
        codes = quantize(grouped_OGI, scale_OG[..., None], zero_point_OG[..., None], num_bits)
    return codes.reshape(weight_OI.shape).to(torch.int32)


def _grouped(weight_OI: Tensor, group_size: int | None) -> Tensor:
    outputs, inputs = weight_OI.shape
    size = inputs if group_size is None else group_size
    if size < 1 or inputs % size:
        raise InputError(
            f"group size {group_size} does not divide {inputs} inputs; choose a divisor"
        )
    return weight_OI.reshape(outputs, inputs // size, size)

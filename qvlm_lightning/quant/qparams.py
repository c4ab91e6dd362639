"""Scale and zero point of a range: one rule everywhere."""

import torch
from torch import Tensor


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
    dtype = compute_dtype(low, high)
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
    dtype = compute_dtype(absmax)
    scale = absmax.to(dtype) / ((2**num_bits - 1) / 2)
    return scale.clamp_min(torch.finfo(dtype).tiny)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if one of the tensors has it, else float32."""
    double = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32

"""Scale and zero point of a range: one rule everywhere."""

import torch
from torch import Tensor


def affine_qparams(
    low: Tensor, high: Tensor, num_bits: int, model_type: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return scale and integral zero point of a range, extended so that it contains 0.

    Args:
        low: smallest value, any shape.
        high: largest value, same shape.
        num_bits: width b, M = 2^b.
        model_type: type of what is quantized; see :func:`as_stored`.

    Returns:
        ``scale = max((high - low) / (M - 1), 1e-6 max(|low|, |high|), tiny)`` and
        ``zero_point = round(-low / scale)`` in [0, M - 1], float32 or float64.

    Example:
        >>> affine_qparams(torch.tensor(-5.0), torch.tensor(10.0), 4)
        (tensor(1.), tensor(5.))
    """
    return level_qparams(low, high, 2**num_bits, model_type)


def level_qparams(
    low: Tensor, high: Tensor, levels: int, model_type: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Return :func:`affine_qparams` for any number of levels M."""
    dtype = compute_dtype(low, high)
    low, high = low.to(dtype).clamp_max(0), high.to(dtype).clamp_min(0)
    floor = (1e-6 * torch.maximum(-low, high)).clamp_min(torch.finfo(dtype).tiny)
    scale = as_stored(torch.maximum((high - low) / (levels - 1), floor), model_type)
    return scale, (-low / scale).round().clamp(0, levels - 1)


def symmetric_scale(absmax: Tensor, num_bits: int, model_type: torch.dtype | None = None) -> Tensor:
    """Return ``absmax / ((2^b - 1) / 2)``, for codes in [-2^(b-1), 2^(b-1) - 1].

    Args:
        absmax: largest magnitude.
        num_bits: width b.
        model_type: type of what is quantized; see :func:`as_stored`.

    Example:
        >>> symmetric_scale(torch.tensor(7.5), 4)
        tensor(1.)
    """
    dtype = compute_dtype(absmax)
    scale = absmax.to(dtype) / ((2**num_bits - 1) / 2)
    return as_stored(scale.clamp_min(torch.finfo(dtype).tiny), model_type)


def as_stored(scale: Tensor, model_type: torch.dtype | None) -> Tensor:
    """Return a scale as a bfloat16 or float16 model stores it; other types leave it as it is.

    Codes are computed with it, in float32, so that whoever reads the stored scale finds the same
    codes.

    Args:
        scale: positive, float32.
        model_type: type of the model.

    Example:
        >>> as_stored(torch.tensor(0.1), torch.bfloat16)
        tensor(0.1001)
    """
    if model_type not in (torch.bfloat16, torch.float16):
        return scale
    kind = torch.finfo(model_type)
    least = max(kind.tiny * kind.eps, torch.finfo(torch.float32).tiny)  # never rounded to 0
    return scale.clamp(least, kind.max).to(model_type).to(scale.dtype)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if one of the tensors has it, else float32."""
    double = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32

"""Ranges of a weight for the least error of its output, with zero points of their own.

Shapes: O outputs, I inputs, G groups.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvlm_lightning.quant.weight_ranges import group_errors, rounded_on
from qvlm_lightning.quant.weights import weight_qparams, weight_ranges

RATIOS = tuple(i / 100 for i in range(100, 0, -1))
"""Of minimum and maximum: 1.00, 0.99 .. 0.01."""

_ELEMENTS_AT_ONCE = 2**20
"""Of a weight's candidates that are judged together."""


@torch.no_grad()
def hessian_ranges(
    weight_OI: Tensor,
    gram_II: Tensor,
    num_bits: int,
    group_size: int | None,
    symmetric: bool,
    dtype: torch.dtype,
    ratios: Sequence[float] = RATIOS,
) -> tuple[Tensor, Tensor]:
    """Return the range of every output channel, or of each group of its inputs, that has the least
    ``d H_g d^T``, d the rounding errors on it.

    Candidates are minimum and maximum, which win a tie, and both times every ratio, with the zero
    point rounded down and up; symmetric ranges have none.

    Args:
        weight_OI: weight of a Linear layer.
        gram_II: H, of its inputs.
        num_bits: width b.
        group_size: inputs per group; ``None`` for one range per output channel.
        symmetric: symmetric codes.
        dtype: type of the model, to which scales are rounded.
        ratios: tried shares of minimum and maximum.

    Returns:
        low and high, [O, G, 1].

    Example:
        >>> weight = torch.tensor([[0.0, 2.0, 2.1, 9.0]])
        >>> low, high = hessian_ranges(weight, torch.eye(4), 2, None, False, torch.float32)
        >>> low.item(), round(high.item(), 2)
        (0.0, 8.46)
    """
    low, high = weight_ranges(weight_OI, group_size, symmetric)
    least_OG = _errors(weight_OI, low, high, (num_bits, symmetric, dtype), gram_II)
    lows, highs = _candidates(low, high, num_bits, symmetric, dtype, ratios)
    at_once = max(1, _ELEMENTS_AT_ONCE // weight_OI.numel())
    for some in zip(lows.split(at_once), highs.split(at_once), strict=True):
        count, (bottom_COG1, top_COG1) = len(some[0]), some
        stacked = weight_OI.repeat(count, 1), bottom_COG1.flatten(0, 1), top_COG1.flatten(0, 1)
        errors = _errors(*stacked, (num_bits, symmetric, dtype), gram_II)
        error_OG, place_OG = errors.reshape(count, *least_OG.shape).min(dim=0)
        better_OG1 = (error_OG < least_OG)[..., None]
        least_OG = torch.minimum(error_OG, least_OG)
        place = place_OG[None, ..., None]
        low = torch.where(better_OG1, bottom_COG1.gather(0, place)[0], low)
        high = torch.where(better_OG1, top_COG1.gather(0, place)[0], high)
    return low, high


def _errors(
    weight_OI: Tensor,
    low_OG1: Tensor,
    high_OG1: Tensor,
    grid: tuple[int, bool, torch.dtype],
    gram_II: Tensor,
) -> Tensor:
    """Return ``d H_g d^T`` on given ranges, [O, G] float64."""
    rounded = rounded_on(weight_OI, low_OG1, high_OG1, *grid)
    return group_errors(rounded - weight_OI, low_OG1.shape[1], gram_II)


def _candidates(
    low: Tensor,
    high: Tensor,
    num_bits: int,
    symmetric: bool,
    dtype: torch.dtype,
    ratios: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Return C ranges, [C, O, G, 1] each."""
    share = torch.tensor(ratios, dtype=low.dtype, device=low.device)[:, None, None, None]
    lows, highs = low * share, high * share
    if symmetric:
        return lows, highs
    most = 2**num_bits - 1
    scale = weight_qparams(lows, highs, num_bits, symmetric, dtype)[0][..., None]
    place = -lows.clamp_max(0) / scale
    zero_point = torch.cat([place.floor(), place.ceil()]).clamp(0, most)
    scale = scale.repeat(2, 1, 1, 1)
    return -zero_point * scale, (most - zero_point) * scale

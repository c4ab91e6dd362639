"""Ranges of a weight for the least error of its output, with zero points of their own.

Shapes: O outputs, I inputs, G groups.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qvlm_lightning.quant.weight_ranges import group_errors, rounded_on
from qvlm_lightning.quant.weights import weight_qparams, weight_ranges

RATIOS = tuple(i / 100 for i in range(100, 0, -1))
"""Of minimum and maximum: 1.00, 0.99 .. 0.01."""


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

    Candidates are minimum and maximum, first and winning a tie, then both times every ratio, with
    the zero point rounded down and up; symmetric ranges have none.

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
    groups, least_OG = low.shape[1], None
    best_low, best_high = low, high
    for bottom, top in _candidates(low, high, num_bits, symmetric, dtype, ratios):
        rounded = rounded_on(weight_OI, bottom, top, num_bits, symmetric, dtype)
        error_OG = group_errors(rounded - weight_OI, groups, gram_II)
        if least_OG is None:
            least_OG = error_OG
        better_OG = error_OG < least_OG
        least_OG = torch.where(better_OG, error_OG, least_OG)
        best_low = torch.where(better_OG[..., None], bottom, best_low)
        best_high = torch.where(better_OG[..., None], top, best_high)
    return best_low, best_high


def _candidates(
    low: Tensor,
    high: Tensor,
    num_bits: int,
    symmetric: bool,
    dtype: torch.dtype,
    ratios: Sequence[float],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ranges [O, G, 1]."""
    yield low, high
    most = 2**num_bits - 1
    for ratio in ratios:
        bottom, top = low * ratio, high * ratio
        if symmetric:
            yield bottom, top
            continue
        scale = weight_qparams(bottom, top, num_bits, symmetric, dtype)[0][..., None]
        place = -bottom.clamp_max(0) / scale
        for zero_point in (place.floor(), place.ceil()):
            zero_point = zero_point.clamp(0, most)
            yield -zero_point * scale, (most - zero_point) * scale

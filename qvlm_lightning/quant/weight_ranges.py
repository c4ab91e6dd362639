"""Choice of a weight's range among shrunken ones, for the error of the weight or of its output.

Shapes: O outputs, I inputs, G groups, J inputs of a group.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvlm_lightning.quant.weights import weight_codes_on, weight_qparams, weight_ranges


@torch.no_grad()
def searched_ranges(
    weight_OI: Tensor,
    ratios: Sequence[float],
    num_bits: int,
    group_size: int | None,
    symmetric: bool,
    gram_II: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the range of every output channel, or of each group of its inputs, that has the least
    error among minimum and maximum times a ratio.

    The error of a group is ``sum d^2`` of its weight's rounding errors d, or with the inputs' Gram
    matrix ``d H_g d^T``: what the group adds to the squared error of the output.

    Args:
        weight_OI: weight of a Linear layer.
        ratios: candidates, the first of which wins a tie.
        num_bits: width b.
        group_size: inputs per group; ``None`` for one range per output channel.
        symmetric: symmetric codes.
        gram_II: ``sum_t x_t x_t^T``; ``None`` for the weight's own error.
        dtype: type of the model, to which scales are rounded; default: the weight's.

    Returns:
        low and high, [O, G, 1].

    Example:
        >>> weight = torch.tensor([[0.0, 2.0, 2.1, 9.0]])
        >>> searched_ranges(weight, [1.0, 0.9], 2, None, False)[1]
        tensor([[[8.1000]]])
    """
    low, high = weight_ranges(weight_OI, group_size, symmetric)
    best_OG, chosen_OG = None, torch.zeros(low.shape[:2], dtype=torch.int64, device=low.device)
    for index, ratio in enumerate(ratios):
        rounded = rounded_on(weight_OI, low * ratio, high * ratio, num_bits, symmetric, dtype)
        error_OG = group_errors(rounded - weight_OI, low.shape[1], gram_II)
        if best_OG is None:
            best_OG = error_OG
        better = error_OG < best_OG
        best_OG = torch.where(better, error_OG, best_OG)
        chosen_OG = chosen_OG.masked_fill(better, index)
    ratio_OG = torch.tensor(ratios, dtype=low.dtype, device=low.device)[chosen_OG]
    return low * ratio_OG[..., None], high * ratio_OG[..., None]


def group_errors(error_OI: Tensor, groups: int, gram_II: Tensor | None) -> Tensor:
    """Return ``sum d^2`` or ``d H_g d^T`` of every output channel's groups, [O, G] float64.

    Args:
        error_OI: d, rounding errors of a weight.
        groups: G.
        gram_II: see :func:`searched_ranges`; of it the blocks on the diagonal are read.

    Example:
        >>> group_errors(torch.tensor([[1.0, 2.0]]), 1, torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        tensor([[7.]], dtype=torch.float64)
    """
    parts_GOJ = error_OI.double().reshape(len(error_OI), groups, -1).transpose(0, 1)
    if gram_II is None:
        return parts_GOJ.square().sum(dim=-1).T
    size = gram_II.shape[0] // groups
    found = [
        quadratic_rows(part, gram_II[g * size : (g + 1) * size, g * size : (g + 1) * size])
        for g, part in enumerate(parts_GOJ.to(gram_II.dtype))
    ]
    return torch.stack(found, dim=1).double()


def quadratic_rows(rows_OI: Tensor, gram_II: Tensor, block: int = 128) -> Tensor:
    """Return ``d H d^T`` of every row d, [O], in the type of H.

    What two different channels add counts twice, so that half of the products are enough.

    Args:
        rows_OI: rows d, in the type of H.
        gram_II: H, symmetric.
        block: channels that are multiplied together.

    Example:
        >>> quadratic_rows(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]]), 1)
        tensor([7.])
    """
    total_O = rows_OI.new_zeros(len(rows_OI))
    for first in range(0, len(gram_II), block):
        own, earlier = slice(first, first + block), slice(0, first)
        products = rows_OI[:, own] @ gram_II[own, own]
        if first:
            products += 2 * (rows_OI[:, earlier] @ gram_II[earlier, own])
        total_O += products.mul_(rows_OI[:, own]).sum(dim=-1)
    return total_O


def rounded_on(
    weight_OI: Tensor,
    low_OG1: Tensor,
    high_OG1: Tensor,
    num_bits: int,
    symmetric: bool,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return a weight [O, I] rounded to the nearest values that a model of type ``dtype`` has on
    given ranges, in float32.
    """
    scale, zero_point = weight_qparams(
        low_OG1, high_OG1, num_bits, symmetric, dtype or weight_OI.dtype
    )
    codes = weight_codes_on(weight_OI, scale, zero_point, num_bits, symmetric)
    grouped = codes.reshape(*scale.shape, -1) - zero_point[..., None]
    return (grouped * scale[..., None]).reshape(weight_OI.shape)

"""Scales per input channel that a weight's grid has beside those of its outputs (Z-Fold, Jeon et
al., EMNLP 2023; as a step of aespa, arXiv:2402.08958).

Shapes: O outputs, C input channels, S channels of the source that makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvlm_lightning.quant.weight_ranges import rounded_on, searched_ranges

RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Of minimum and maximum, among which ranges are chosen by the error of the output."""


@dataclass(frozen=True)
class FoldedLayer:
    """A layer that reads channels whose scales are looked for.

    Attributes:
        weight: W, [O, C].
        gram: H of its inputs, [C, C] float64.
        channels: which channel of the source each input is, [C].
        num_bits, group_size, symmetric: of its weight's codes.
    """

    weight: Tensor
    gram: Tensor
    channels: Tensor
    num_bits: int
    group_size: int | None
    symmetric: bool

    def rounded(self, scale_S: Tensor) -> Tensor:
        """Return the rounded ``W diag(1 / z)``, [O, C] float64, on ranges for its inputs."""
        z_C = scale_S[self.channels]
        weight, gram = (self.weight.double() / z_C).float(), self.gram * z_C * z_C[:, None]
        settings = self.num_bits, self.group_size, self.symmetric
        low, high = searched_ranges(weight, RATIOS, *settings, gram, self.weight.dtype)
        codes = rounded_on(weight, low, high, self.num_bits, self.symmetric, self.weight.dtype)
        return codes.double()

    def error(self, rounded_OC: Tensor, scale_S: Tensor) -> float:
        """Return ``tr(D H D^T)``, D what is rounded times z less W."""
        change = rounded_OC * scale_S[self.channels] - self.weight.double()
        return float(((change @ self.gram) * change).sum())


@torch.no_grad()
def channel_scales(layers: Sequence[FoldedLayer], sources: int, rounds: int = 30) -> Tensor:
    """Return z, [S] float64, for the least ``tr(D H D^T)`` with ``D = Q(W diag(1/z)) diag(z) - W``,
    over layers that read the same channels.

    In turn the weight is rounded for given z, and z becomes the least squares answer for what came
    out, ``z_c = <Q_c, W_c> / <Q_c, Q_c>``, until the error no longer falls; never worse than 1.

    Args:
        layers: one or more.
        sources: S.
        rounds: at most.
    """
    scale = torch.ones(sources, dtype=torch.float64, device=layers[0].weight.device)
    rounded = [layer.rounded(scale) for layer in layers]
    least = sum(layer.error(x, scale) for layer, x in zip(layers, rounded, strict=True))
    for _ in range(rounds):
        tried = _least_squares(layers, rounded, scale)
        found = [layer.rounded(tried) for layer in layers]
        error = sum(layer.error(x, tried) for layer, x in zip(layers, found, strict=True))
        if not error < least:
            break
        scale, rounded, least = tried, found, error
    return scale


def _least_squares(
    layers: Sequence[FoldedLayer], rounded: Sequence[Tensor], before_S: Tensor
) -> Tensor:
    """Return z for rounded weights; as before where all of a channel is rounded to 0 or turned."""
    products, squares = torch.zeros_like(before_S), torch.zeros_like(before_S)
    for layer, own in zip(layers, rounded, strict=True):
        products.index_add_(0, layer.channels, (own * layer.weight.double()).sum(dim=0))
        squares.index_add_(0, layer.channels, own.square().sum(dim=0))
    fits = (squares > 0) & (products > 0)
    return torch.where(fits, products / torch.where(fits, squares, 1.0), before_S)

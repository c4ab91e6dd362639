"""Random (sample, token, channel) triples of a tower, at which codes are compared (eq. 4-6)."""

import torch
from torch import Tensor


def draw_triples(rows: int, channels: int, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the (sample, token, channel) triples of a tower once.

    Args:
        rows: number of samples the tower sees.
        channels: width of the tower.
        count: number of triples S.
        seed: seed of the draw.

    Returns:
        [S] sample, uniform over the samples; [S] token as a fraction in [0, 1) of the sample's
        valid tokens,
        so that the draw needs no activation; [S] channel.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randint(rows, (count,), generator=generator)
    token = torch.rand(count, generator=generator, dtype=torch.float64)
    channel = torch.randint(channels, (count,), generator=generator)
    return sample, token, channel


def pick_tokens(mask: Tensor | None, row: Tensor, fraction: Tensor, length: int) -> Tensor:
    """Return the position of the token at ``fraction`` of each row's valid tokens.

    Args:
        mask: [B, T] bool or ``None`` if every token is valid.
        row: [S] row of the batch.
        fraction: [S] in [0, 1).
        length: T.
    """
    if mask is None:
        return (fraction * length).long()
    valid = mask.sum(dim=1)
    order = mask.to(torch.int64).argsort(dim=1, descending=True, stable=True)
    return order[row, (fraction * valid[row]).long()]

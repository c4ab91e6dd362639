"""What the Linear layers of an expert see of a batch: the tokens that were routed to it.

Shapes: B samples, T tokens of a sequence, S rows of an expert's input, D channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Route:
    """Which expert a site belongs to.

    Attributes:
        experts: the layer's experts; their ``tokens`` say which token every row of the last input
            was (:class:`qvlm_lightning.models.experts.Experts`).
        index: which of them.
        layer: name of the experts, the same for all of a layer.
        role: name of the site within its expert, the same for all experts.
    """

    experts: Any
    index: int
    layer: str
    role: str

    @property
    def tokens(self) -> Tensor | None:
        """Token of every row of the last input, [B, S] int64, -1 for filling."""
        tokens: Tensor | None = self.experts.tokens[self.index]
        return tokens


def observed(
    route: Route | None, x: Tensor, mask_BT: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the input of a site sample by sample, and which of its rows count.

    Args:
        route: of the site; ``None`` for layers that see every token.
        x: live input of its Linear layers: [B, T, D], [B T, D] where a layer flattens its tokens,
            or [B, S, D] of an expert.
        mask_BT: bool, tokens that count; ``None`` for all.

    Returns:
        [B, rows, D], and [B, rows] bool or ``None`` for all.
    """
    if route is None:
        if x.dim() == 2 and mask_BT is not None:
            return x.reshape(*mask_BT.shape, x.shape[-1]), mask_BT
        return x, mask_BT
    tokens_BS = route.tokens
    assert tokens_BS is not None, "an expert that is called has tokens"
    real_BS = tokens_BS >= 0
    if mask_BT is not None:
        real_BS = real_BS & mask_BT.to(tokens_BS.device).gather(1, tokens_BS.clamp_min(0))
    return x, real_BS


def spread(route: Route, x_BSD: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Put the rows of an expert's input back to their places in the sequence.

    Args:
        route: of the expert.
        x_BSD: its last input.
        length: T.

    Returns:
        [B, T, D], zero where no token was routed to the expert, and [B, T] bool, where one was.
    """
    tokens_BS = route.tokens
    assert tokens_BS is not None, "an expert that is called has tokens"
    real_BS = tokens_BS >= 0
    place_BS = tokens_BS.clamp_min(0)
    x_BTD = x_BSD.new_zeros(x_BSD.shape[0], length, x_BSD.shape[-1])
    filled = x_BSD.where(real_BS[..., None], 0)
    x_BTD = x_BTD.scatter_add(1, place_BS[..., None].expand_as(filled), filled)
    reached = torch.zeros(x_BTD.shape[:2], dtype=torch.int64, device=x_BSD.device)
    return x_BTD, reached.scatter_add(1, place_BS, real_BS.long()) > 0

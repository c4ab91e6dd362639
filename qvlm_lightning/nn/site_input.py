"""Inputs of single sites, caught while a layer runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qvlm_lightning.nn.routing import observed, spread
from qvlm_lightning.nn.structure import Site
from qvlm_lightning.nn.taps import taps


@dataclass
class SiteInput:
    """What the Linear layers of a site read in one batch.

    Attributes:
        hidden: [B, T, D]; zero for tokens that never came to the site's expert.
        mask: [B, T] bool, tokens that count; ``None`` for all.
        routed: whether the tokens depend on a router.
    """

    hidden: Tensor
    mask: Tensor | None
    routed: bool = False

    def shared_mask(self, other: "SiteInput") -> Tensor | None:
        """Return the tokens that count here and in the same site's input of another chain.

        Quantization may send a token to another expert; where only one chain has it, there is
        nothing to compare.
        """
        if not self.routed or self.mask is None or other.mask is None:
            return self.mask
        return self.mask & other.mask


@contextmanager
def site_inputs(
    sites: Sequence[Site], hidden: Tensor, mask: Tensor | None
) -> Iterator[dict[str, SiteInput]]:
    """Within the block, catch the inputs of ``sites`` while their layer runs; complete behind it.

    Args:
        sites: of one layer.
        hidden: what goes into the layer, [B, T, D].
        mask: [B, T] bool, tokens that count; ``None`` for all.

    Yields:
        Site name -> its input.
    """
    seen: dict[str, SiteInput] = {}
    by_name = {site.name: site for site in sites}
    leaders: dict[str, nn.Module] = {site.name: site.leader for site in sites}

    def see(name: str, x: Tensor) -> None:
        route = by_name[name].route
        if route is None:
            seen[name] = SiteInput(*observed(None, x, mask))
            return
        dense, reached = spread(route, x, hidden.shape[1])
        seen[name] = SiteInput(dense, reached if mask is None else reached & mask, routed=True)

    with taps(leaders, see):
        yield seen
    for site in sites:
        if site.route is not None and site.name not in seen:
            nothing = hidden.new_zeros(*hidden.shape[:2], site.leader.in_features)
            none = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            seen[site.name] = SiteInput(nothing, none, routed=True)

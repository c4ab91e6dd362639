"""Inputs of single sites, caught while a layer runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.nn.routing import observed, spread
from qvlm_lightning.nn.structure import Site
from qvlm_lightning.nn.taps import ReachedError


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
    sites: Sequence[Site],
    hidden: Tensor,
    mask: Tensor | None,
    quantized: bool = False,
    stop: bool = False,
) -> Iterator[dict[str, SiteInput]]:
    """Within the block, catch the inputs of ``sites`` while their layer runs; complete behind it.

    Args:
        sites: of one layer.
        hidden: what goes into the layer, [B, T, D].
        mask: [B, T] bool, tokens that count; ``None`` for all.
        quantized: catch what the site's quantizer makes of the input, as the Linear layers read it.
        stop: leave the forward pass, and the block, as soon as the last of the sites is reached;
            of experts, which need not run at all, the layer runs to its end.

    Yields:
        Site name -> its input.
    """
    seen: dict[str, SiteInput] = {}
    stop = stop and all(site.route is None for site in sites)

    def make(site: Site) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if site.name in seen:  # a quantizer is called once by every layer of its site
                return
            x = output if quantized else args[0]
            if site.route is None:
                seen[site.name] = SiteInput(*observed(None, x, mask))
            else:
                dense, reached = spread(site.route, x, hidden.shape[1])
                kept = reached if mask is None else reached & mask
                seen[site.name] = SiteInput(dense, kept, routed=True)
            if stop and len(seen) == len(sites):
                raise ReachedError

        return hook

    handles = [site.quantizer.register_forward_hook(make(site)) for site in sites]
    try:
        yield seen
    except ReachedError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for site in sites:
        if site.route is not None and site.name not in seen:
            nothing = hidden.new_zeros(*hidden.shape[:2], site.leader.in_features)
            none = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            seen[site.name] = SiteInput(nothing, none, routed=True)

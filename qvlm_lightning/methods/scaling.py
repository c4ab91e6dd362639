"""Scale folds of a block as decisions: activations divided by a factor, weights multiplied."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.site_statistics import Chain, inputs_of
from qvlm_lightning.nn.distributed import gather_objects
from qvlm_lightning.nn.folding import folded
from qvlm_lightning.nn.structure import Site

Extremes = Mapping[str, tuple[Tensor, Tensor]]
"""Site -> lowest and highest input of every channel, [D]; [T, D] where ranges are per position."""


@torch.no_grad()
def scaled(
    block: Block,
    site: Site,
    factor_S: Tensor,
    decision: Decision | None = None,
    extremes: Extremes | None = None,
) -> Decision:
    """Return the decision behind a fold: the input of a site divided by a factor per channel.

    In full precision the block computes what it did. Ranges of weights are measured again unless
    they have been decided; static ranges of the activations that change are minimum and maximum of
    the block's calibration inputs.

    Args:
        block: with its cached inputs.
        site: whose input to scale; all that read the same source are scaled with it.
        factor_S: [S], positive, per channel of the source (``Source.repeats``).
        decision: what was decided before.
        extremes: of the sites that read the source, before the fold; default: they are measured.

    Raises:
        KeyError: the family names no source for the site (``block.sources``).
        InputError: the source's outputs for the first tokens are stored (``sink: prefix``).
    """
    before = decision or Decision()
    source = block.sources[site.name]
    if stores_output(block, site):
        raise InputError(
            f"{source.name} stores what it gives for sink tokens, and a fold would not change "
            "that; allowed here: scheme.sink 'none', 'bypass'"
        )
    changed = folded(block.module, lambda name: block.tensor(name, before), source, factor_S)
    after = before | Decision(changed)
    others = [s for s in static_sites(block.sites) if set(source.readers) & s.linears.keys()]
    if others and extremes is None:
        extremes = channel_extremes(block, others, before)
    for other in others:
        assert extremes is not None, "they have been measured"
        low_D, high_D = extremes[other.name]
        factor_D = factor_S.to(low_D)[source.channels(low_D.shape[-1]).to(low_D.device)]
        name, like = f"{next(iter(other.linears))}.input_quantizer", other.quantizer.low
        low, high = _range(low_D / factor_D, high_D / factor_D, like)
        ratio = torch.ones_like(like)
        after.tensors |= {f"{name}.low": low, f"{name}.high": high}
        after.tensors |= {f"{name}.low_ratio": ratio, f"{name}.high_ratio": ratio.clone()}
    return after


def stores_output(block: Block, site: Site) -> bool:
    """Return whether the source of a site stores its outputs for sink tokens (``sink: prefix``)."""
    return getattr(block.module(block.sources[site.name].name), "sink_output", None) is not None


def static_sites(sites: Sequence[Site]) -> list[Site]:
    """Return the sites whose activations are quantized on a stored range."""
    return [s for s in sites if s.quantizer.mode != "dynamic_token" and s.quantizer.num_bits < 16]


@torch.no_grad()
def channel_extremes(
    block: Block,
    sites: Sequence[Site],
    decision: Decision | None = None,
    chain: Chain = "full_precision",
) -> Extremes:
    """Return the lowest and highest input of every channel of sites, over all processes.

    Args:
        block: with its cached inputs; tokens of weight 0 count like all others.
        sites: of one unit.
        decision: what the layers up to the sites are like.
        chain: in which chain.
    """
    shares: dict[str, tuple[Tensor, Tensor]] = {}
    batches = inputs_of(block, sites, decision, chain) if sites else ()
    for _, seen in batches:
        for site in sites:
            x = seen[site.name].hidden.float()
            mask = seen[site.name].mask
            if site.quantizer.low.dim() == 2:  # per position; every token of the tower counts
                ends = x.amin(dim=0), x.amax(dim=0)
            else:
                rows = x.reshape(-1, x.shape[-1]) if mask is None else x[mask]
                if not len(rows):  # no token came to the expert
                    continue
                ends = rows.aminmax(dim=0)
            low, high = shares.get(site.name, ends)
            shares[site.name] = torch.minimum(low, ends[0]), torch.maximum(high, ends[1])
    mine = {name: (low.cpu(), high.cpu()) for name, (low, high) in shares.items()}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for share in gather_objects(mine):
        for name, (low, high) in share.items():
            known = found.get(name, (low, high))
            found[name] = torch.minimum(known[0], low), torch.maximum(known[1], high)
    for site in sites:
        like = site.leader.weight
        nothing = torch.zeros(site.leader.in_features)
        low, high = found.get(site.name, (nothing, nothing))
        found[site.name] = low.to(like.device), high.to(like.device)
    return found


def _range(low: Tensor, high: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the range of channel extremes, [D] or [T, D], in the shape of a quantizer's range."""
    if like.dim() == 2:
        low, high = low.amin(dim=-1, keepdim=True), high.amax(dim=-1, keepdim=True)
    elif like.dim() == 0:
        low, high = low.amin(), high.amax()
    return low.to(like), high.to(like)

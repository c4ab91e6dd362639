"""Scale folds of a block as decisions: activations divided by a factor, weights multiplied."""

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.site_statistics import inputs
from qvlm_lightning.nn.distributed import gather_objects
from qvlm_lightning.nn.folding import folded
from qvlm_lightning.nn.structure import Site


@torch.no_grad()
def scaled(
    block: Block, site: Site, factor_S: Tensor, decision: Decision | None = None
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

    Raises:
        KeyError: the family names no source for the site (``block.sources``).
        InputError: the source's outputs for the first tokens are stored (``sink: prefix``).
    """
    before = decision or Decision()
    source = block.sources[site.name]
    made = block.module(source.name)
    if getattr(made, "sink_output", None) is not None:
        raise InputError(
            f"{source.name} stores what it gives for sink tokens, and a fold would not change "
            "that; allowed here: scheme.sink 'none', 'bypass'"
        )
    changed = folded(block.module, lambda name: block.tensor(name, before), source, factor_S)
    after = before | Decision(changed)
    for other in block.sites:
        if not set(source.readers) & other.linears.keys():
            continue
        if other.quantizer.mode != "dynamic_token" and other.quantizer.num_bits < 16:
            name = f"{next(iter(other.linears))}.input_quantizer"
            low, high = _observed(block, other, after)
            ratio = torch.ones_like(low)
            after.tensors |= {f"{name}.low": low, f"{name}.high": high}
            after.tensors |= {f"{name}.low_ratio": ratio, f"{name}.high_ratio": ratio.clone()}
    return after


def _observed(block: Block, site: Site, decision: Decision) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum of a site's inputs, in the shape of its quantizer's range."""
    like = site.quantizer.low
    low, high = torch.full_like(like, torch.inf), torch.full_like(like, -torch.inf)
    for _, seen in inputs(block, site, decision, "full_precision"):
        x = (seen.hidden if seen.mask is None else seen.hidden[seen.mask]).float()
        if like.dim() == 2:  # per position [T, 1]; every token of the tower counts
            ends = x.amin(dim=(0, -1))[:, None], x.amax(dim=(0, -1))[:, None]
        elif like.dim() == 1:
            ends = x.reshape(-1, x.shape[-1]).aminmax(dim=0)
        else:
            ends = x.aminmax()
        low, high = torch.minimum(low, ends[0]), torch.maximum(high, ends[1])
    shares = gather_objects((low.cpu(), high.cpu()))
    lows, highs = (torch.stack(ends) for ends in zip(*shares, strict=True))
    return lows.amin(dim=0).to(like), highs.amax(dim=0).to(like)

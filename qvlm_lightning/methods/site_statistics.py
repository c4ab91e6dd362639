"""Statistics of the inputs of single sites, as methods that change weights need them."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.nn.distributed import all_sum
from qvlm_lightning.nn.replay import run_full_precision, run_unit
from qvlm_lightning.nn.site_input import SiteInput, site_inputs
from qvlm_lightning.nn.structure import Site

Chain = Literal["quantized", "full_precision"]


@torch.no_grad()
def inputs(
    block: Block, site: Site, decision: Decision | None = None, chain: Chain = "quantized"
) -> Iterator[tuple[int, SiteInput]]:
    """Yield number and input of a site in every batch that is this process's.

    Args:
        block: with its cached inputs.
        site: one of its sites.
        decision: what the layers up to the site are like.
        chain: in which chain; the site's own quantizer has not been applied yet.
    """
    place = block.unit_of(site)
    unit = block.units[place]
    tensors = decision.tensors if decision else None
    for batch in block.mine():
        if chain == "quantized":
            call = block.x_q[batch]
            hidden = block.run(batch, decision, slice(0, place))
        else:
            call = block.x_fp[batch]
            hidden = call.hidden
            for earlier in block.units[:place]:
                hidden = run_full_precision(earlier, hidden, call, tensors)
        with site_inputs([site], hidden, call.mask) as seen:
            if chain == "quantized":
                run_unit(unit, hidden, call, tensors=tensors)
            else:
                run_full_precision(unit, hidden, call, tensors)
        block.cost.count(layers=1)
        yield batch, seen[site.name]


@torch.no_grad()
def gram(
    block: Block, site: Site, decision: Decision | None = None, chain: Chain = "quantized"
) -> Tensor:
    """Return ``sum_t w_t x_t x_t^T`` of a site's inputs, [D, D] float64, over all processes.

    Args:
        block: with its cached inputs.
        site: one of its sites.
        decision: what the layers up to the site are like.
        chain: see :func:`inputs`.
    """
    width = site.leader.in_features
    total = torch.zeros(width, width, dtype=torch.float64, device=site.leader.weight.device)
    for rows, weight in _rows(block, site, decision, chain):
        rows = rows.double()
        total += (rows * weight[:, None]).T @ rows
    return all_sum(total)


@torch.no_grad()
def mean_magnitude(
    block: Block, site: Site, decision: Decision | None = None, chain: Chain = "quantized"
) -> Tensor:
    """Return the weighted mean of each input channel's magnitude, [D] float64, over all processes.

    Args:
        block: with its cached inputs.
        site: one of its sites.
        decision: what the layers up to the site are like.
        chain: see :func:`inputs`.
    """
    width = site.leader.in_features
    total = torch.zeros(width + 1, dtype=torch.float64, device=site.leader.weight.device)
    for rows, weight in _rows(block, site, decision, chain):
        total[:width] += (rows.double().abs() * weight[:, None]).sum(dim=0)
        total[width] += weight.sum()
    total = all_sum(total)
    return total[:width] / total[width].clamp_min(torch.finfo(torch.float64).tiny)


def _rows(
    block: Block, site: Site, decision: Decision | None, chain: Chain
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the tokens that count of every batch, [N, D], and their weights, [N] float64."""
    for batch, seen in inputs(block, site, decision, chain):
        weight = block.weight(batch, seen.mask)
        if weight is None:
            rows = seen.hidden.reshape(-1, seen.hidden.shape[-1])
            yield rows, rows.new_ones(len(rows), dtype=torch.float64)
        else:
            kept = weight != 0
            yield seen.hidden[kept], weight[kept].double()

"""Inputs of the sites of one unit in both chains, as a sequential search compares them (eq. 2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvlm_lightning.methods.block import Block
from qvlm_lightning.nn.replay import run_candidates, run_full_precision
from qvlm_lightning.nn.site_input import SiteInput, site_inputs


@torch.no_grad()
def full_precision_site_inputs(
    block: Block, unit: int, hidden: Sequence[Tensor]
) -> list[list[SiteInput]]:
    """Return per batch the input of every site of a unit in the full-precision chain."""
    owner = block.units[unit]
    inputs = []
    for h, call in zip(hidden, block.x_fp, strict=True):
        with site_inputs(owner.sites, h, call.mask) as seen:
            run_full_precision(owner, h, call, block.given.tensors)
        block.cost.count(layers=1, repeated=True)
        inputs.append([seen[site.name] for site in owner.sites])
    return inputs


@torch.no_grad()
def quantized_site_input(
    block: Block, unit: int, hidden: Sequence[Tensor], choice: Tensor, site: int
) -> list[SiteInput]:
    """Return per batch the input of one site in the quantized chain, the unit's earlier sites
    at ``choice``.
    """
    owner = block.units[unit]
    inputs = []
    for h, call in zip(hidden, block.x_q, strict=True):
        with site_inputs([owner.sites[site]], h, call.mask) as seen:
            run_candidates(owner, h, call, block.tables[unit], choice[None], block.given.tensors)
        block.cost.count(layers=1, repeated=True)
        inputs.append(seen[owner.sites[site].name])
    return inputs

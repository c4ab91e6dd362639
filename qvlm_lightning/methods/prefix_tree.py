"""Every combination of a block's percentiles, sharing the work of common beginnings."""

import itertools

import torch
from torch import Tensor

from qvlm_lightning.methods.block import Block
from qvlm_lightning.nn.distributed import world
from qvlm_lightning.nn.replay import run_candidates


@torch.no_grad()
def exhaustive_table(block: Block, options: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Evaluate every combination along a prefix tree: 5 + 25 + 125 layer evaluations for depth 3,
    not 375.

    Args:
        block: the block.
        options: per unit [n, sites of the unit] percentile indices.

    Returns:
        J [product of n] float64 and the assignments [product of n, sites of the block]. Branches of
        the
        first unit are shared out between processes.
    """
    sizes = [len(o) for o in options]
    choices = torch.stack([torch.cat(rows) for rows in itertools.product(*options)])
    errors = block.error_table(len(choices))
    rank, world_size = world()
    at_once = len(block.percentiles)  # of a unit of many sites all would not fit on a device

    def grow(batch: int, level: int, hidden: Tensor, index: int, first: int) -> None:
        rows = options[level][first : first + at_once]
        stacked = hidden.repeat(len(rows), *[1] * (hidden.dim() - 1))
        unit, call = block.units[level], block.x_q[batch]
        stacked = run_candidates(
            unit, stacked, call, block.tables[level], rows, block.given.tensors
        )
        # every process runs the first level, whose branches it then shares out
        block.cost.count(layers=len(rows), repeated=level == 0 and len(sizes) > 1)
        place = index * sizes[level] + first
        if level == len(sizes) - 1:
            block.score(errors, batch, stacked, first=place)
            return
        for branch, output in enumerate(stacked.split(hidden.shape[0])):
            owner = (batch * sizes[0] + first + branch) % world_size
            if level > 0 or owner == rank:
                grow_all(batch, level + 1, output, place + branch)

    def grow_all(batch: int, level: int, hidden: Tensor, index: int) -> None:
        for first in range(0, sizes[level], at_once):
            grow(batch, level, hidden, index, first)

    for batch, call in enumerate(block.x_q):
        # a block of one unit has no branches to share out: whole batches go round
        if len(sizes) > 1 or batch % world_size == rank:
            grow_all(batch, 0, call.hidden, 0)
    return block.reduce(errors), choices

"""Reductions that are the identity in a single process."""

from typing import Any

import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Return (rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_sum(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over the processes, without gradient.

    A table of which every process fills its own entries and leaves 0 in the others comes back
    exact.
    """
    if world()[1] == 1:
        return x
    # NCCL reduces on GPUs only, and tables are kept on the CPU
    wire = x.to("cuda") if dist.get_backend() == "nccl" else x.clone()
    dist.all_reduce(wire)
    return wire.to(x.device)


def all_sum_with_gradient(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over the processes; its gradient is summed over them too.

    Every process then holds the same loss L, and the gradient that reaches a parameter is the
    number of
    processes times that process's share of dL; averaging over the processes, as DDP does, makes it
    dL.
    """
    if world()[1] == 1:
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x)


def gather_objects(value: Any) -> list[Any]:
    """Return ``value`` of every process, in order of rank."""
    _, size = world()
    if size == 1:
        return [value]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, value)
    return gathered


def from_main(value: Any) -> Any:
    """Return the ``value`` of the first process, in every process."""
    if world()[1] == 1:
        return value
    shared = [value if is_main() else None]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]


def barrier() -> None:
    """Wait for the other processes."""
    if world()[1] > 1:
        dist.barrier()


def is_main() -> bool:
    """Whether this is the process that writes files."""
    return world()[0] == 0

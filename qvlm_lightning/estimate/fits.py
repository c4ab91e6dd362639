"""Comparison of a calibration's memory with that of its machine, before the calibration starts."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.estimate.memory import allocations
from qvlm_lightning.estimate.sizes import in_gib
from qvlm_lightning.estimate.workload import (
    DEVICE,
    RAM,
    Allocation,
    Workload,
    alternatives,
    levers,
    workload_of,
)
from qvlm_lightning.progress import say

MARGIN = 1.2
"""Formulas agree with what small models allocate within 15 % (tests/calibration/test_memory.py)."""
CONTAINER = Path("/sys/fs/cgroup/memory.max")


def check_memory(module: Any, trainer: Any) -> None:
    """Compare what a built calibration will hold with what there is, and say what may not fit.

    Args:
        module: a built :class:`QuantModule`.
        trainer: tells devices and processes.

    Raises:
        InputError: batches are too small for the processes and micro-batches, or a GPU is too small
            by more than the formulas can be wrong; says of what, and what would fit. RAM is not
            refused: its pages can be swapped, and those of weights can be read again. Nor are
            models with routed experts, whose formulas are upper bounds.
    """
    structure, device = module.structure, trainer.strategy.root_device
    measure = partial(allocations, module.calibrator.model, structure)
    workload = workload_of(
        module.calibrator,
        module.method,
        module.max_depth or 1,
        processes=trainer.world_size,
        optimises=module.optimises,
        streaming=bool(module.streaming),
        spills=module.streaming == "disk",
        micro_batches=module.micro_batches,
        activation_checkpointing=module.activation_checkpointing,
    )
    routed = any(site.route for site in structure.sites)
    workload.check()
    for pool in memory_pools(device, trainer.num_devices):
        if RAM not in pool.places and not routed:
            certain = shortage(measure, workload, replace(pool, nbytes=int(pool.nbytes * MARGIN)))
            if certain:
                raise InputError(certain)
        possible = shortage(measure, workload, pool)
        if possible and trainer.is_global_zero:
            say(f"may not fit: {possible}")


@dataclass(frozen=True)
class MemoryPool:
    """Memory of one kind.

    Attributes:
        name: for people.
        places: what lies in it, of ``device`` and ``ram``.
        nbytes: its size.
        processes: how many share it.
    """

    name: str
    places: tuple[str, ...]
    nbytes: int
    processes: int


def memory_pools(device: torch.device, processes: int) -> list[MemoryPool]:
    """Return the memory of a machine, as far as it can be told.

    Args:
        device: where a process runs layers.
        processes: on this machine.
    """
    pools = []
    ram = ram_bytes()
    if ram is not None:
        places = (DEVICE, RAM) if device.type == "cpu" else (RAM,)
        pools.append(MemoryPool("this machine's RAM", places, ram, processes))
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        pools.append(MemoryPool(str(device), (DEVICE,), total, 1))
    return pools


def ram_bytes() -> int | None:
    """Return the RAM that this process may use, or ``None`` where it cannot be told."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CONTAINER.read_text().strip() if CONTAINER.is_file() else "max"
    return min(pages, int(limit)) if limit.isdigit() else pages


def shortage(
    measure: Callable[[Workload], list[Allocation]], workload: Workload, pool: MemoryPool
) -> str | None:
    """Return what is lacking and what would fit, in a sentence; ``None`` if everything fits.

    Args:
        measure: allocations of a workload.
        workload: what is asked.
        pool: memory of one kind.
    """
    lack = _lack(measure(workload), pool)
    if lack is None:
        return None
    smaller = (w for w in alternatives(workload) if _lack(measure(w), pool) is None)
    other = next(smaller, None)
    if other is None:
        lever = levers(workload)
    elif other.micro_batches != workload.micro_batches:
        lever = f"--model.micro_batches={other.micro_batches}, with the same result"
    else:
        lever = f"--data.batch_size={other.batch_size}, with the same result"
    return f"{lack}; what takes less: {lever} (`qvlm plan` tells every size)"


def _lack(allocations: Sequence[Allocation], pool: MemoryPool) -> str | None:
    """Return which step needs more than ``pool`` has, in words, or ``None``."""
    steps: dict[str, int] = {}
    for a in allocations:
        if a.where in pool.places:
            steps[a.step] = steps.get(a.step, 0) + a.nbytes * pool.processes
    step = max(steps, key=lambda name: steps[name], default="")
    if not step or steps[step] <= pool.nbytes:
        return None
    needed, there = in_gib(steps[step], 1), in_gib(pool.nbytes, 1)
    return f"{step} needs about {needed} GiB of {pool.name}, which has {there}"

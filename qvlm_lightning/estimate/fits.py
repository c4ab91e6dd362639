"""Whether a calibration has room on its machine; asked before it starts."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.estimate.memory import memory
from qvlm_lightning.estimate.workload import DEVICE, RAM, Held, Work, alternatives, levers, searches
from qvlm_lightning.progress import say

GIB = 1024**3
MARGIN = 1.2
"""Formulas agree with what small models allocate within 15 % (tests/calibration/test_memory.py)."""
CONTAINER = Path("/sys/fs/cgroup/memory.max")


def check_room(module: Any, trainer: Any) -> None:
    """Compare what a built calibration will hold with what there is, and say what may not fit.

    Args:
        module: a built :class:`QuantModule`.
        trainer: tells devices and callbacks.

    Raises:
        InputError: batches are too small for the processes and micro-batches, or a GPU is too small
            by more than the formulas can be wrong; says of what, and what would fit. RAM is not
            refused: its pages can be swapped, and those of weights can be read again. Nor are
            models with routed experts, whose formulas are upper bounds.
    """
    structure, device = module.structure, trainer.strategy.root_device
    measure = partial(memory, module.calibrator.model, structure)
    work, routed = work_of(module, trainer), any(site.route for site in structure.sites)
    work.check()
    for room in rooms(device, trainer.num_devices):
        if RAM not in room.places and not routed:
            certain = shortage(measure, work, replace(room, nbytes=int(room.nbytes * MARGIN)))
            if certain:
                raise InputError(certain)
        possible = shortage(measure, work, room)
        if possible and trainer.is_global_zero:
            say(f"may not fit: {possible}")


def work_of(module: Any, trainer: Any) -> Work:
    """Return what a built calibration is asked to do; lengths are means over the pairs."""
    calibrator = module.calibrator
    batches, family = calibrator.batches, calibrator.family
    pairs = sum(len(b["sample_index"]) for b in batches)
    tokens = sum(b["attention_mask"].numel() for b in batches)
    rows = sum(
        int((b["image_rows"] if "image_rows" in b else b["has_image"]).sum()) for b in batches
    )
    patches = (family.vision_positions(calibrator.model) or 1) * rows
    method, depth = searches(trainer.callbacks)
    return Work(
        pairs=pairs,
        search_pairs=sum(len(b["sample_index"]) for b in calibrator.search_batches),
        batch_size=max(len(b["sample_index"]) for b in batches),
        processes=trainer.world_size,
        tokens=-(-tokens // pairs),
        patches=-(-patches // pairs),
        depth=depth or 1,
        method=method,
        optimises=module.optimises,
        streaming=bool(module.streaming),
        spills=module.streaming == "disk",
        micro_batches=module.micro_batches,
        activation_checkpointing=module.activation_checkpointing,
    )


@dataclass(frozen=True)
class Room:
    """Memory of one kind: its name, what lies in it, its bytes, how many processes share it."""

    name: str
    places: tuple[str, ...]
    nbytes: int
    processes: int


def rooms(device: torch.device, processes: int) -> list[Room]:
    """Return the memory of a machine, as far as it can be told.

    Args:
        device: where a process runs layers.
        processes: on this machine.
    """
    found = []
    ram = _ram()
    if ram is not None:
        places = (DEVICE, RAM) if device.type == "cpu" else (RAM,)
        found.append(Room("this machine's RAM", places, ram, processes))
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        found.append(Room(str(device), (DEVICE,), total, 1))
    return found


def _ram() -> int | None:
    """Return the RAM that this process may use, or ``None`` where it cannot be told."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CONTAINER.read_text().strip() if CONTAINER.is_file() else "max"
    return min(pages, int(limit)) if limit.isdigit() else pages


def shortage(measure: Callable[[Work], list[Held]], work: Work, room: Room) -> str | None:
    """Return what is lacking and what would fit, in a sentence; ``None`` if there is room.

    Args:
        measure: :func:`memory` of some work.
        work: what is asked.
        room: memory of one kind.
    """
    found = _lacking(measure(work), room)
    if found is None:
        return None
    smaller = (w for w in alternatives(work) if _lacking(measure(w), room) is None)
    other = next(smaller, None)
    if other is None:
        lever = levers(work)
    elif other.micro_batches != work.micro_batches:
        lever = f"--model.micro_batches={other.micro_batches}, with the same result"
    else:
        lever = f"--data.batch_size={other.batch_size}, with the same result"
    return f"{found}; what takes less: {lever} (`qvlm plan` tells every size)"


def _lacking(held: Sequence[Held], room: Room) -> str | None:
    steps: dict[str, int] = {}
    for h in held:
        if h.where in room.places:
            steps[h.step] = steps.get(h.step, 0) + h.nbytes * room.processes
    step = max(steps, key=lambda name: steps[name], default="")
    if not step or steps[step] <= room.nbytes:
        return None
    needed, there = steps[step] / GIB, room.nbytes / GIB
    return f"{step} needs about {needed:.1f} GiB of {room.name}, which has {there:.1f}"

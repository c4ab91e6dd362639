"""Whether a calibration has room on its machine; asked before it starts."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from qvlm_lightning.calibration.memory import memory
from qvlm_lightning.calibration.progress import say
from qvlm_lightning.calibration.work import DEVICE, RAM, Held, Work, alternatives, levers
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method

GIB = 1024**3


def check_room(module: Any, trainer: Any) -> None:
    """Compare what a built calibration will hold with what there is.

    Args:
        module: a built :class:`QuantModule`.
        trainer: tells devices and callbacks.

    Raises:
        InputError: there is certainly not enough; says of what, and what would fit. Models with
            routed experts, for which only an upper bound is known, are warned about.
    """
    structure, device = module.structure, trainer.strategy.root_device
    measure = partial(memory, module.calibrator.model, structure)
    available = rooms(device, trainer.num_devices)
    complaint = shortage(measure, work_of(module, trainer), available)
    if complaint is None:
        return
    if not any(site.route for site in structure.sites):
        raise InputError(complaint)
    if trainer.is_global_zero:
        say(f"if every token came to every expert: {complaint}")


def work_of(module: Any, trainer: Any) -> Work:
    """Return what a built calibration is asked to do."""
    calibrator = module.calibrator
    batches, family = calibrator.batches, calibrator.family
    tiles = [int(b["image_rows"].max()) for b in batches if "image_rows" in b]
    methods = [getattr(callback, "method", None) for callback in trainer.callbacks]
    depths = [c.options["max_depth"] for c in trainer.callbacks if hasattr(c, "options")]
    return Work(
        pairs=sum(len(b["sample_index"]) for b in batches),
        search_pairs=sum(len(b["sample_index"]) for b in calibrator.search_batches),
        batch_size=max(len(b["sample_index"]) for b in batches),
        processes=trainer.world_size,
        tokens=max(b["attention_mask"].shape[1] for b in batches),
        patches=(family.vision_positions(calibrator.model) or 1) * max(tiles, default=1),
        depth=max(depths, default=1),
        method=next((m for m in methods if isinstance(m, Method)), None),
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
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        places = (DEVICE, RAM) if device.type == "cpu" else (RAM,)
        found.append(Room("this machine's RAM", places, ram, processes))
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        found.append(Room(str(device), (DEVICE,), total, 1))
    return found


def shortage(
    measure: Callable[[Work], list[Held]], work: Work, available: Sequence[Room]
) -> str | None:
    """Return what is lacking and what would fit, in a sentence; ``None`` if there may be room.

    Args:
        measure: :func:`memory` of some work.
        work: what is asked.
        available: of the machine.
    """
    found = _lacking(measure(work), available)
    if found is None:
        return None
    smaller = (w for w in alternatives(work) if _lacking(measure(w), available) is None)
    other = next(smaller, None)
    if other is None:
        lever = levers(work)
    elif other.micro_batches != work.micro_batches:
        lever = f"--model.micro_batches={other.micro_batches}, with the same result"
    else:
        lever = f"--data.batch_size={other.batch_size}, with the same result"
    return f"{found}; what takes less: {lever} (`qvlm plan` tells every size)"


def _lacking(held: Sequence[Held], available: Sequence[Room]) -> str | None:
    for room in available:
        inside = [h for h in held if h.where in room.places]
        steps = {h.step: 0 for h in inside}
        for h in inside:
            steps[h.step] += h.nbytes * room.processes
        step = max(steps, key=lambda name: steps[name])
        if steps[step] > room.nbytes:
            needed, there = steps[step] / GIB, room.nbytes / GIB
            return f"{step} needs about {needed:.1f} GiB of {room.name}, which has {there:.1f}"
    return None

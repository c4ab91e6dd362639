"""How a run begins whose model is streamed: what it opens, what it says before it starts."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from qvlm_lightning.estimate.fits import ram_bytes
from qvlm_lightning.estimate.sizes import format_bytes
from qvlm_lightning.estimate.stream_plan import StreamPlan
from qvlm_lightning.forward.stream import StreamedModel
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.progress import say
from qvlm_lightning.weights.shards import Shards
from qvlm_lightning.weights.streamed import StreamedWeights

Streaming = bool | Literal["disk"]


def open_model(
    family: VLMFamily, device: torch.device, ram: int = 0
) -> tuple[nn.Module, StreamedWeights]:
    """Return a model without weights, and where they come from.

    Args:
        family: names the folder.
        device: where layers will run.
        ram: bytes in which weights may stay once they have been read, for a device with memory of
            its own; all of them or none.

    Raises:
        InputError: the folder is missing or broken, or cannot be read layer by layer.
    """
    model, places = family.streamed()
    shards = Shards(places)
    total = sum(entry.nbytes for entry in set(shards.entries.values()))
    return model, StreamedWeights(model, shards, device, device.type != "cpu" and total <= ram)


def ram_for_weights(streaming: Streaming, processes: int) -> int:
    """Return how many bytes of RAM a process may fill with weights: half of its share, or none if
    hidden states wait on disk, since RAM is short then.

    Args:
        streaming: of the module.
        processes: on this machine.
    """
    ram = ram_bytes()
    return 0 if streaming == "disk" or ram is None else ram // (2 * processes)


def prepare(module: Any, passes: StreamedModel, trainer: Any) -> None:
    """Choose where hidden states wait, and say what is held where.

    Args:
        module: a fresh :class:`QuantModule`.
        passes: of its calibrator.
        trainer: tells the run folder and who speaks.
    """
    if module.streaming == "disk":
        passes.spill = Path(trainer.default_root_dir)  # unlinked once mapped
    if trainer.is_global_zero:
        depth = module.max_depth
        plan = StreamPlan(
            module.calibrator,
            passes,
            depth or 1,
            depth is not None,
            module.method,
            module.epochs,
            module.micro_batches,
        )
        for line in plan.lines():
            say(line)
        if module.calibrator.prepared is not None:
            held = format_bytes(module.calibrator.prepared.nbytes)
            say(f"in the run folder: {held} of rotated weights, written once, until the run ends")
        passes.timed = plan.timed

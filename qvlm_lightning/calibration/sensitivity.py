"""Sensitivity of a model to quantization: how much each part and each layer hurts by itself."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.forward.samples import Batch
from qvlm_lightning.losses import IGNORED
from qvlm_lightning.metrics.divergence import answer_kl
from qvlm_lightning.nn.distributed import all_sum, world

WORST = 10
"""Layers of a report."""
Variant = frozenset[str]
"""Names of the units that are quantized; the others are in full precision."""


@dataclass(frozen=True)
class Sensitivity:
    """Mean divergence from the full-precision model where only some of it is quantized.

    Attributes:
        everything: nats, with everything quantized.
        parts: ``vision``, ``projector``, ``language`` -> nats, with only that part quantized.
        layers: unit -> nats, with only that unit quantized, in forward order.
        positions: answer-predicting positions, over which means are taken.
        forwards: forward passes of one batch through the whole model, over all processes.
        seconds: wall time.
    """

    everything: float
    parts: dict[str, float]
    layers: dict[str, float]
    positions: int
    forwards: int
    seconds: float

    def worst(self, count: int = WORST) -> list[tuple[str, float]]:
        """Return the layers that hurt most, the worst one first, with their nats."""
        return sorted(self.layers.items(), key=lambda layer: -layer[1])[:count]


def sensitivity_report(calibrator: Calibrator) -> dict[str, Any]:
    """Return what ``report.json`` says about sensitivity: every part and the ten worst layers.

    To be called in every process.

    Args:
        calibrator: with ranges; see :func:`sensitivity`.
    """
    measured = sensitivity(calibrator)
    return {
        "unit": "nats",
        "everything": measured.everything,
        "parts": measured.parts,
        "layers": [{"name": name, "kl": kl} for name, kl in measured.worst()],
        "positions": measured.positions,
        "forwards": measured.forwards,
        "seconds": measured.seconds,
    }


@torch.no_grad()
def sensitivity(calibrator: Calibrator) -> Sensitivity:
    """Measure KL(full precision || quantized) with one part or one layer quantized at a time.

    Nats at the positions of the search batches that predict an answer token, mean over them. Takes
    one forward pass of every search batch per part and layer, and two more; a streamed model reads
    its weights up to twice for as many variants as the hidden states of all calibration pairs have
    room for. Processes share the batches, and all of them have to call this.

    Args:
        calibrator: with ranges and a model in ``eval()`` mode. Its quantizers are left as they
            were.
    """
    started = time.perf_counter()
    parts: dict[str, set[str]] = {}
    for tower in calibrator.structure.towers.values():
        names = parts.setdefault(tower.name.partition(".")[0], set())
        names |= {unit.name for unit in tower.units if unit.sites}
    layers = [unit.name for unit in calibrator.structure.units if unit.sites]
    of_parts = {part: Variant(names) for part, names in parts.items()}
    of_layers = {name: Variant([name]) for name in layers}
    everything = Variant(layers)
    # a projector is a part and a layer, and a part may have nothing to quantize: each once
    variants = list(dict.fromkeys([Variant(), everything, *of_parts.values(), *of_layers.values()]))
    sums, positions = _divergences(calibrator, variants)
    nats = dict(zip(variants, (sums / positions).tolist(), strict=True))
    return Sensitivity(
        everything=nats[everything],
        parts={part: nats[variant] for part, variant in of_parts.items()},
        layers={name: nats[variant] for name, variant in of_layers.items()},
        positions=positions,
        forwards=len(variants) * len(calibrator.search_batches),
        seconds=time.perf_counter() - started,
    )


def _divergences(calibrator: Calibrator, variants: Sequence[Variant]) -> tuple[Tensor, int]:
    """Return per variant the sum of KL over the positions ([V] float64, nats), and their number.

    Args:
        calibrator: runs the model.
        variants: the first one is full precision.
    """
    rank, size = world()
    batches = calibrator.search_batches
    chosen = [answer_positions(batch) for batch in batches]
    reference: dict[int, Tensor] = {}
    # a number each, so that sums are the same for any number of processes
    table = torch.zeros(len(variants), len(batches), dtype=torch.float64)

    def on_logits(number: int, logits: Tensor) -> None:
        variant, index = divmod(number, len(batches))
        log_probs = logits[chosen[index].to(logits.device)].float().log_softmax(dim=-1)
        if not variants[variant]:
            reference[index] = log_probs
        table[variant, index] = answer_kl(reference[index], log_probs).sum()

    # hidden states of a streamed model wait all at once: no more of them than in other passes
    pairs, searched = (_pairs(some) for some in (calibrator.batches, batches))
    step = max(1, pairs // searched)
    for first in range(0, len(variants), step):
        group = range(first, min(first + step, len(variants)))
        numbers = [v * len(batches) + i for v in group for i in range(rank, len(batches), size)]

        def progress(count: int, of: int, group: range = group) -> None:
            if calibrator.progress:
                done = group.start + len(group) * count // of
                calibrator.progress("sensitivity", done, len(variants))

        calibrator.passes.logits(
            {number: batches[number % len(batches)] for number in numbers},
            {number: variants[number // len(batches)] for number in numbers},
            on_logits,
            progress,
        )
    return all_sum(table).sum(dim=1), sum(int(mask.sum()) for mask in chosen)


def answer_positions(batch: Batch) -> Tensor:
    """Return the positions that predict a token of an answer, [B, T] bool.

    Of a sample without an answer it is its last token: an answer would begin behind it.

    Args:
        batch: its labels are -100 where nothing is to be predicted; position t predicts t + 1.

    Example:
        >>> batch = {"attention_mask": torch.ones(1, 3), "labels": torch.tensor([[-100, -100, 5]])}
        >>> answer_positions(batch)
        tensor([[False,  True, False]])
    """
    valid = batch["attention_mask"].bool()
    predicts = torch.zeros_like(valid)
    if "labels" in batch:
        predicts[:, :-1] = batch["labels"][:, 1:] != IGNORED
    last = valid.shape[1] - 1 - valid.flip(1).int().argmax(dim=1)
    mute = ~predicts.any(dim=1)
    predicts[mute, last[mute]] = True
    return predicts


def _pairs(batches: Sequence[Batch]) -> int:
    return sum(len(batch["sample_index"]) for batch in batches)

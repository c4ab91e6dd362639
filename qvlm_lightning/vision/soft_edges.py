"""What visual-encoder optimisation looks at in one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.forward.samples import Batch, by_sample, rows_and_mask
from qvlm_lightning.forward.triples import draw_triples, pick_tokens
from qvlm_lightning.nn.structure import Site, Structure
from qvlm_lightning.nn.taps import taps
from qvlm_lightning.quant.entropy import Temperature, real_codes, soft_joint_sums

ENTROPY_LEVELS = 16
ChannelRange = Callable[[Site], tuple[Tensor, Tensor]]


@dataclass
class ForwardOutputs:
    """Tensors of one forward pass.

    Attributes:
        logits: [B, T, V].
        features: X_v, what the projector reads, [images, tokens, D]; ``None`` without images.
        last_hidden: X_n, what the output head reads, [B, T, D].
        units: tower -> X^(k), the input of every unit's first site.
    """

    logits: Tensor
    features: Tensor | None
    last_hidden: Tensor
    units: dict[str, list[Tensor]] = field(default_factory=dict)


def forward_outputs(model: Any, structure: Structure, inputs: Batch, units: bool) -> ForwardOutputs:
    """Run the model and return logits, X_v, X_n and, if ``units``, every X^(k)."""
    caught: dict[str, Tensor] = {}
    modules: dict[str, nn.Module] = {
        "features": structure.towers["projector"].units[0].module,
        "last_hidden": model.get_output_embeddings(),
    }
    if units:
        for name in ("vision", "language"):
            for index, unit in enumerate(structure.towers[name].units):
                if unit.sites:
                    modules[f"{name}.{index}"] = unit.sites[0].leader
    with taps(modules, caught.__setitem__):
        logits = model(**inputs, use_cache=False).logits
    outputs = ForwardOutputs(logits, caught.get("features"), caught["last_hidden"])
    for name in ("vision", "language") if units else ():
        count = len(structure.towers[name].units)
        present = [caught[f"{name}.{i}"] for i in range(count) if f"{name}.{i}" in caught]
        outputs.units[name] = present
    return outputs


def gradients_by_sample(
    outputs: ForwardOutputs, gradients: Sequence[Tensor | None], batch: Batch
) -> tuple[list[Tensor | None], Tensor]:
    """Return the gradients of all ``outputs.units``, in their order, as [samples, T, D], and how
    many samples each unit saw, [K] float64.
    """
    owner = [name for name, tower in outputs.units.items() for _ in tower]
    split = [
        None if g is None else by_sample(name, g, batch)[0]
        for name, g in zip(owner, gradients, strict=True)
    ]
    samples = [float(len(rows_and_mask(name, batch)[0])) for name in owner]
    return split, torch.tensor(samples, dtype=torch.float64)


class SoftEdges:
    """Differentiable joint distributions of neighbouring units on one batch
    (docs/paper.md, A2 and A3).

    The triples are drawn over the whole batch, so that every number of parts uses the same ones;
    counts are summed over the parts before they are normalised (docs/paper.md, A18).

    Args:
        structure: towers.
        channel_range: the full-precision range per channel of a site, for the codes.
        temperature: of the soft assignment; ``paper`` for the printed form of eq. 5.
        samples: triples per tower.
    """

    def __init__(
        self,
        structure: Structure,
        channel_range: ChannelRange,
        temperature: Temperature,
        samples: int,
    ) -> None:
        self.temperature, self.samples = temperature, samples
        self.ranges = {
            name: [channel_range(u.sites[0]) for u in tower.units]
            for name, tower in structure.towers.items()
            if name != "projector" and len(tower.units) > 1 and all(u.sites for u in tower.units)
        }

    def counts(
        self, outputs: ForwardOutputs, local: Batch, whole: Batch, seed: int
    ) -> dict[str, Tensor]:
        """Return per tower the soft counts [edges, M, M] of the triples that lie in ``local``; over
        all parts of the batch they sum to ``samples``.

        Args:
            outputs: forward pass of a part.
            local: the part.
            whole: the batch.
            seed: seed of the draw.
        """
        result = {}
        for tower, ranges in self.ranges.items():
            rows = rows_and_mask(tower, whole)[0]
            if not rows:
                continue
            sample, fraction, channel = draw_triples(
                len(rows), ranges[0][0].numel(), self.samples, seed
            )
            here = rows_and_mask(tower, local)[0]
            place = {index: row for row, index in enumerate(here)}
            row = torch.tensor([place.get(rows[s], -1) for s in sample.tolist()])
            mine = row >= 0
            units = [by_sample(tower, x, local) for x in outputs.units.get(tower, [])]
            sums = self._sums(units, ranges, row[mine], fraction[mine], channel[mine])
            result[tower] = torch.stack(sums)
        return result

    def _sums(
        self,
        units: list[tuple[Tensor, Tensor | None]],
        ranges: list[tuple[Tensor, Tensor]],
        row: Tensor,
        fraction: Tensor,
        channel: Tensor,
    ) -> list[Tensor]:
        device = ranges[0][0].device
        if not len(row):  # none of this tower's samples is here
            return [torch.zeros(ENTROPY_LEVELS, ENTROPY_LEVELS, device=device) for _ in ranges[1:]]
        first, mask = units[0]
        token = pick_tokens(mask, row, fraction, first.shape[1]).to(device)
        row, channel = row.to(device), channel.to(device)
        codes, delta = [], []
        for (x, _), (low, high) in zip(units, ranges, strict=True):
            low, high = low[channel], high[channel]
            codes.append(real_codes(x[row, token, channel], low, high, ENTROPY_LEVELS))
            delta.append((high.clamp_min(0) - low.clamp_max(0)) / (ENTROPY_LEVELS - 1))
        sums = []
        for edge in range(len(codes) - 1):
            pair = codes[edge], codes[edge + 1]
            if self.temperature == "paper":
                sums.append(
                    soft_joint_sums(
                        *pair, ENTROPY_LEVELS, "paper", delta=(delta[edge], delta[edge + 1])
                    )
                )
            else:
                sums.append(soft_joint_sums(*pair, ENTROPY_LEVELS, self.temperature))
        return sums

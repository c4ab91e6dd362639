"""Dependency between neighbouring units, measured on codes (eq. 4-6)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qvlm_lightning.calibration.statistics import Statistics
from qvlm_lightning.forward.passes import Passes
from qvlm_lightning.forward.samples import Batch, by_sample, counted, rows_and_mask
from qvlm_lightning.forward.triples import draw_triples, pick_tokens
from qvlm_lightning.models.family import VISION, VLMFamily
from qvlm_lightning.nn.distributed import all_sum, world
from qvlm_lightning.nn.structure import Structure, Tower
from qvlm_lightning.quant.entropy import joint_counts, real_codes

ENTROPY_BITS = 4  # M = 16 levels: the plug-in estimate needs 50 M^2 samples (docs/paper.md, A2)


@torch.no_grad()
def dependency_counts(
    passes: Passes,
    family: VLMFamily,
    structure: Structure,
    tower: Tower,
    statistics: Statistics,
    batches: Sequence[Batch],
    quantized: set[str],
    samples: int = 16384,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Count the codes of neighbouring units at the same samples, tokens and channels.

    The tower itself runs in full precision, fed by the towers of ``quantized``. Codes are taken at
    the
    first site of every unit, on its per-channel range (docs/paper.md, A2), with 16 levels.

    Args:
        passes: run the model.
        family: names the image tokens.
        structure: its towers.
        tower: the tower to look at; its units have equal width.
        statistics: full-precision ranges.
        batches: calibration batches, shared between processes.
        quantized: towers whose quantizers are on.
        samples: number of triples.
        seed: seed of the draw.

    Returns:
        ``all``: [edges, M, M] int64; for the language tower also ``image`` and ``text`` tokens
        apart.
        Sums of integers: the same for any number of processes.
    """
    levels, edges = 2**ENTROPY_BITS, len(tower.units) - 1
    modules: dict[str, nn.Module] = {str(i): u.sites[0].leader for i, u in enumerate(tower.units)}
    ranges = [statistics.channel_range(unit.sites[0]) for unit in tower.units]
    seen_rows = [rows_and_mask(tower.name, batch)[0] for batch in batches]
    first = [0, *torch.tensor([len(r) for r in seen_rows]).cumsum(0).tolist()]
    sample, fraction, channel = draw_triples(first[-1], ranges[0][0].numel(), samples, seed)
    rank, size = world()
    drawn = {
        index: (sample >= first[index]) & (sample < first[index + 1])
        for index in range(rank, len(batches), size)
    }
    mine = {index: batches[index] for index, chosen in drawn.items() if chosen.any()}
    codes: dict[int, dict[int, Tensor]] = {index: {} for index in mine}

    def place(index: int, length: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return row and token of the triples of a batch."""
        row = sample[drawn[index]] - first[index]
        return row, pick_tokens(mask, row, fraction[drawn[index]], length)

    def on_input(index: int, name: str, x: Tensor) -> None:
        column = channel[drawn[index]]
        low, high = (r.cpu()[column] for r in ranges[int(name)])
        x, mask = by_sample(tower.name, x, mine[index])
        row, token = place(index, x.shape[1], mask)
        u = real_codes(x.cpu()[row, token, column], low, high, levels)
        codes[index][int(name)] = u.round().clamp(0, levels - 1).to(torch.int64)

    passes.watch(mine, modules, quantized - {tower.name}, on_input, last=tower.name)
    counts = torch.zeros(3, edges, levels, levels, dtype=torch.int64)
    for index, batch in mine.items():
        slots = [torch.ones(int(drawn[index].sum()), dtype=torch.bool)]
        if tower.name == "language":
            mask = counted(batch)
            row, token = place(index, mask.shape[1], mask)
            image = family.token_kind(batch)[row, token] == VISION
            slots += [image, ~image]
        for edge in range(edges):
            for slot, chosen in enumerate(slots):
                counts[slot, edge] += joint_counts(
                    codes[index][edge][chosen], codes[index][edge + 1][chosen], levels
                )
    counts = all_sum(counts)
    result = {"all": counts[0]}
    if tower.name == "language":
        result |= {"image": counts[1], "text": counts[2]}
    return result

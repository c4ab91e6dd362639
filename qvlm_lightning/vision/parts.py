"""The share of every calibration batch that a process runs, in parts one after another."""

from typing import Any

from qvlm_lightning.forward.samples import Batch, with_image_rows, with_sinks
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.distributed import world
from qvlm_lightning.nn.sinks import SinkTokens


def parts_of_process(
    data: Any, family: VLMFamily, model: Any, micro_batches: int, sinks: SinkTokens | None = None
) -> list[list[Batch]]:
    """Return of every batch the parts that this process runs, cut as if every part had a process of
    its own.

    Args:
        data: data module; cuts the batches.
        family: of the model.
        model: says which rows of its image inputs belong to a sample.
        micro_batches: parts of this process.
        sinks: sink tokens of the model.

    Raises:
        InputError: a batch has fewer samples than there are parts.
    """
    rank, size = world()
    columns = [
        [with_sinks(sinks, with_image_rows(family, model, batch)) for batch in batches]
        for batches in (
            data.rank_batches(rank * micro_batches + part, size * micro_batches)
            for part in range(micro_batches)
        )
    ]
    return [list(parts) for parts in zip(*columns, strict=True)]

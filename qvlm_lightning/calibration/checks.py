"""What is checked of a model and its calibration set before the calibration starts."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from qvlm_lightning.calibration.modality_gradients import check_answers
from qvlm_lightning.errors import InputError
from qvlm_lightning.export import check_model
from qvlm_lightning.forward.samples import Batch


def check_before(
    module: Any, model: nn.Module, batches: Sequence[Batch], ids: Sequence[str]
) -> None:
    """Check what shows before any work, while the model is still as it was loaded.

    Args:
        module: a :class:`QuantModule`; knows its method, and whether something will be exported.
        model: in full precision.
        batches: the calibration batches.
        ids: of the calibration samples.

    Raises:
        InputError: what an artifact needs cannot be saved, or a sample has more tokens than the
            model has positions, or there is no answer whose gradients a method needs.
    """
    if module.exports:
        module.family.check_export(model)
        if module.scheme.target == "compressed-tensors":
            check_model(model)
    check_context(batches, module.family.positions(model), ids)
    if module.method is not None and module.method.needs_gradients:
        check_answers(batches)


def check_context(batches: Sequence[Batch], positions: int | None, ids: Sequence[str]) -> None:
    """Refuse samples that are longer than what the model has seen: their tokens would set ranges.

    Args:
        batches: ``attention_mask`` [B, T], ``sample_index`` [B].
        positions: of the model.
        ids: of the samples.

    Raises:
        InputError: a sample has more tokens; names the longest.
    """
    if positions is None:
        return
    lengths = {
        int(place): int(length)
        for batch in batches
        for place, length in zip(batch["sample_index"], batch["attention_mask"].sum(1), strict=True)
    }
    long = [place for place, length in lengths.items() if length > positions]
    if long:
        longest = max(long, key=lambda place: lengths[place])
        raise InputError(
            f"{len(long)} calibration samples have more tokens than the model has positions, "
            f"{positions}, such as {ids[longest]!r} with {lengths[longest]}; leave them out or "
            "shorten them"
        )

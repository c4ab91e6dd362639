"""What a checkpoint must agree on with the run that resumes from it."""

from collections.abc import Iterable
from typing import Any

from qvlm_lightning.errors import InputError


def check_checkpoint(
    checkpoint: dict[str, Any], identity: dict[str, Any], tensors: Iterable[str]
) -> None:
    """Check that a checkpoint belongs to a run.

    Args:
        checkpoint: as Lightning reads it.
        identity: plain values of the run.
        tensors: names of the quantizer tensors that the run needs.

    Raises:
        InputError: it comes from another model, scheme, seed or calibration set (names the field),
            or lacks a quantizer tensor.
    """
    stored = checkpoint.get("calibration", {}).get("identity")
    if stored is None:
        raise InputError(
            "the checkpoint is not one of a calibration; give a last.ckpt of this program"
        )
    for field, value in identity.items():
        if stored.get(field) != value:
            raise InputError(
                f"the checkpoint has {field} {_short(stored.get(field))}, this run has "
                f"{_short(value)}; resume with the same configuration or start a new run folder"
            )
    missing = {f"model.{n}" for n in tensors} - set(checkpoint["state_dict"])
    if missing:
        raise InputError(
            f"the checkpoint lacks {len(missing)} quantizer tensors, such as {min(missing)}"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""What callbacks ask of a calibration between its epochs."""

from dataclasses import dataclass
from typing import Any

from qvlm_lightning.methods.base import Method


@dataclass(frozen=True)
class PassSettings:
    """What a callback does between epochs.

    Attributes:
        settings: plain values that a resumed run must agree on.
        max_depth: most units in a block, of what cuts towers into blocks.
        method: of what runs a method of its own, such as a costly proxy.
    """

    settings: dict[str, Any]
    max_depth: int | None = None
    method: Method | None = None

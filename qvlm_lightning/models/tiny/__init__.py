"""The embedded model: its task, its weights, and how they were made."""

from qvlm_lightning.models.tiny.samples import (
    TASKS,
    TEXT_FAMILIES,
    WEIGHTS,
    TinySample,
    calibration_index,
    generate,
)

__all__ = ["TASKS", "TEXT_FAMILIES", "WEIGHTS", "TinySample", "calibration_index", "generate"]

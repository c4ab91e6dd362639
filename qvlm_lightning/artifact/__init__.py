"""The exported folder: written by a calibration, loaded by who uses the model."""

from qvlm_lightning.artifact.loading import Artifact, load, load_artifact
from qvlm_lightning.artifact.saving import (
    copy_weights,
    save_artifact,
    save_as_artifact,
    split_state,
)

__all__ = [
    "Artifact",
    "copy_weights",
    "load",
    "load_artifact",
    "save_artifact",
    "save_as_artifact",
    "split_state",
]

"""The exported folder: written by a calibration, loaded by who uses the model."""

from qvlm_lightning.artifact.loading import Artifact, load, load_artifact
from qvlm_lightning.artifact.saving import copy_weights, save_artifact, save_as_artifact
from qvlm_lightning.artifact.stored import Stored, split_state, stored_tensors

__all__ = [
    "Artifact",
    "Stored",
    "copy_weights",
    "load",
    "load_artifact",
    "save_artifact",
    "save_as_artifact",
    "split_state",
    "stored_tensors",
]

"""Callbacks: when to measure, search, watch and export; no arithmetic of their own."""

from qvlm_lightning.callbacks.artifact_export import ArtifactExport
from qvlm_lightning.callbacks.calibration_bar import CalibrationBar
from qvlm_lightning.callbacks.entropy_repartition import EntropyRepartition
from qvlm_lightning.callbacks.percentile_search import PercentileSearch
from qvlm_lightning.callbacks.quantizer_monitor import QuantizerMonitor
from qvlm_lightning.callbacks.resume_point import ResumePoint

__all__ = [
    "ArtifactExport",
    "CalibrationBar",
    "EntropyRepartition",
    "PercentileSearch",
    "QuantizerMonitor",
    "ResumePoint",
]

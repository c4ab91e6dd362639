"""What a calibration shows of itself: times, losses, and measurements for monitors and reports."""

from abc import abstractmethod
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from qvlm_lightning.calibration import monitoring
from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.calibration.phases import Phases

_HASHES = ("calibration_tokens",)
"""What a checkpoint compares and nobody reads."""


class WatchedModule(LightningModule):
    """A module that times its phases and can be measured.

    Attributes:
        phases: seconds and memory so far, those before a resume included.
        last_loss: of the last optimiser step.
        reported: a report will be written, so that the ranges before the search are measured too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phases = Phases()
        self.last_loss: float | None = None
        self.reported = False

    @abstractmethod
    def _built(self) -> Calibrator:
        """Return the calibrator."""

    def layer_sqnr(self) -> dict[str, float]:
        """Return :func:`~qvlm_lightning.calibration.monitoring.layer_sqnr`."""
        with self.phases("measurements"):
            return monitoring.layer_sqnr(self._built())

    def clip_histograms(self) -> dict[str, tuple[Tensor, float, float]]:
        """Return :func:`~qvlm_lightning.calibration.monitoring.clip_histograms`."""
        return monitoring.clip_histograms(self._built())

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return plain values that make the run what it is."""

    def hyperparameters(self) -> dict[str, Any]:
        """Return what the run was told, in plain values; of lists of samples, how many."""
        told = self.identity()
        counted = ("calibration_ids", "batches", "search_batches")
        told |= {key: len(told[key]) for key in counted if key in told}
        return {key: value for key, value in told.items() if key not in ("model", *_HASHES)}

    def log_scalars(self, values: dict[str, float], step: int) -> None:
        """Give values to every logger of the run.

        Args:
            values: tag -> value.
            step: optimiser steps so far.
        """
        if self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was spent."""
        checkpoint["spent"] = self.phases.spent

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what was spent before the run was resumed."""
        self.phases.add(checkpoint.get("spent", {}))

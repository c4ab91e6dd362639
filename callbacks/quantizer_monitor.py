"""Writes what a calibration has decided, and how well it fits, to TensorBoard."""

from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from qvlm_lightning.calibration.state import CalibrationState
from qvlm_lightning.errors import InputError
from qvlm_lightning.plots import (
    by_prefix,
    clip_histogram_figure,
    partition_figure,
    percentile_figure,
)


class Watchable(Protocol):
    """What a calibration module shows to this callback."""

    @property
    def state(self) -> CalibrationState:
        """Return what has been decided so far."""

    def layer_sqnr(self) -> dict[str, float]:
        """Return layer name -> signal to quantization noise in dB."""

    def clip_histograms(self) -> dict[str, tuple[Tensor, float, float]]:
        """Return site name -> (values, low, high)."""


class QuantizerMonitor(Callback):
    """Draws every search and measures every few epochs, for TensorBoard.

    Tags: ``search/layer_forwards``, ``search/seconds``, ``search/percentile/<site>``; figures
    ``search/percentiles``, ``entropy/dependency/<tower>``, ``quant/clip/<layers>`` of every search;
    ``quant/sqnr/<layer>`` and histograms ``quant/values/<site>`` of every measurement. Loss terms
    are logged by the module. Without a TensorBoard logger it rests.

    Args:
        every_n_epochs: distance between measurements.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise InputError(f"every_n_epochs is {every_n_epochs}, allowed is 1 or more")
        self.every_n_epochs = every_n_epochs
        self._passes_drawn = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that has nothing to watch."""
        # asked of the class: the module itself is built later
        if not hasattr(type(pl_module), "layer_sqnr"):
            raise InputError(
                f"QuantizerMonitor watches calibration modules, not {type(pl_module).__name__}"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the search at the start of this epoch decided."""
        self._draw(trainer, cast(Watchable, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, every ``every_n_epochs``."""
        self._draw(trainer, cast(Watchable, pl_module))
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, cast(Watchable, pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw a final pass that came after the last epoch's end."""
        self._draw(trainer, cast(Watchable, pl_module))

    def state_dict(self) -> dict[str, Any]:
        """Remember what has been drawn: a resumed run does not draw it again."""
        return {"passes_drawn": self._passes_drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over :meth:`state_dict`."""
        self._passes_drawn = state_dict["passes_drawn"]

    def _draw(self, trainer: Trainer, module: Watchable) -> None:
        """Draw what the search passes not drawn yet have decided."""
        state = module.state
        new = state.passes[self._passes_drawn :]
        self._passes_drawn = len(state.passes)
        writer = _writer(trainer)
        if not new or writer is None:
            return
        for search in new:
            writer.add_scalar("search/layer_forwards", search["layer_forwards"], search["epoch"])
            writer.add_scalar("search/seconds", search["seconds"], search["epoch"])
        epoch = new[-1]["epoch"]
        for site, percentile in state.percentiles.items():
            writer.add_scalar(f"search/percentile/{site}", percentile, epoch)
        figures = {"search/percentiles": percentile_figure(state.percentiles)}
        for (
            tower
        ) in state.dependency:  # without a measured dependency every layer is a block of its own
            blocks = {tower: state.partition[tower]}
            figure = partition_figure(state.dependency, state.threshold, blocks)
            figures[f"entropy/dependency/{tower}"] = figure
        for prefix, clips in by_prefix(module.clip_histograms()).items():
            figures[f"quant/clip/{prefix}"] = clip_histogram_figure(clips)
        for tag, figure in figures.items():
            writer.add_figure(tag, figure, epoch, close=False)

    def _measure(self, trainer: Trainer, module: Watchable) -> None:
        """Log SQNR per layer and what passes each site."""
        writer = _writer(trainer)
        if writer is None:
            return
        for layer, decibel in module.layer_sqnr().items():
            writer.add_scalar(f"quant/sqnr/{layer}", decibel, trainer.current_epoch)
        for site, (values, _, _) in module.clip_histograms().items():
            writer.add_histogram(f"quant/values/{site}", values, trainer.current_epoch)


def _writer(trainer: Trainer) -> SummaryWriter | None:
    """Return the event file; ``None`` without one and on every process but the first."""
    if not trainer.is_global_zero:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            return logger.experiment
    return None

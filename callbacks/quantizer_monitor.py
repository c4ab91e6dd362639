"""Writes what a calibration has decided, and how well it fits, to TensorBoard."""

from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from qvlm_lightning.errors import InputError
from qvlm_lightning.plots import (
    by_prefix,
    clip_histogram_figure,
    partition_figure,
    percentile_figure,
)


class Decisions(Protocol):
    """The part of ``CalibrationState`` that is drawn."""

    dependency: dict[str, list[float]]
    threshold: dict[str, float]
    partition: dict[str, list[list[int]]]
    percentiles: dict[str, float]
    passes: list[dict[str, Any]]


@runtime_checkable
class Watchable(Protocol):
    """What a calibration module shows to this callback."""

    state: Decisions

    def layer_sqnr(self) -> dict[str, float]:
        """Return layer name -> signal to quantization noise in dB."""

    def clip_histograms(self) -> dict[str, tuple[Tensor, float, float]]:
        """Return site name -> (values, low, high)."""


class QuantizerMonitor(Callback):
    """Draw dependency, partition, percentiles, SQNR and clip bounds after every search and epoch.

    Tags: ``quant/sqnr/<layer>``, ``quant/clip/<layers>``,
    ``quant/values/<site>``, ``entropy/dependency/<tower>``,
    ``search/percentiles``, ``search/percentile/<site>``, ``search/layer_forwards``,
    ``search/seconds``. Loss terms are logged by the module. Without a TensorBoard logger it rests.

    Args:
        every_n_epochs: distance between two measurements of SQNR and histograms, which need a
            forward pass; decisions are drawn whenever there is a new one.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise InputError(f"every_n_epochs is {every_n_epochs}, allowed is 1 or more")
        self.every_n_epochs = every_n_epochs
        self._passes_drawn = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that has nothing to watch."""
        if not isinstance(pl_module, Watchable):
            raise InputError(
                f"QuantizerMonitor watches calibration modules, not {type(pl_module).__name__}"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the search at the start of this epoch decided."""
        self._draw_decisions(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, every ``every_n_epochs``."""
        self._draw_decisions(trainer, pl_module)
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and measure the result of the final pass."""
        if self._draw_decisions(trainer, pl_module):
            self._measure(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Remember what has been drawn: a resumed run does not draw it again."""
        return {"passes_drawn": self._passes_drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over :meth:`state_dict`."""
        self._passes_drawn = state_dict["passes_drawn"]

    def _draw_decisions(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Draw the search passes not drawn yet; say whether there were any."""
        assert isinstance(pl_module, Watchable)
        state = pl_module.state
        new = state.passes[self._passes_drawn :]
        self._passes_drawn = len(state.passes)
        writer = _writer(trainer)
        if not new or writer is None or not trainer.is_global_zero:
            return bool(new)
        for search in new:
            writer.add_scalar("search/layer_forwards", search["layer_forwards"], search["epoch"])
            writer.add_scalar("search/seconds", search["seconds"], search["epoch"])
        epoch = new[-1]["epoch"]
        for tower, blocks in state.partition.items():
            figure = partition_figure(state.dependency, state.threshold, {tower: blocks})
            writer.add_figure(f"entropy/dependency/{tower}", figure, epoch, close=False)
        if state.percentiles:
            figure = percentile_figure(state.percentiles)
            writer.add_figure("search/percentiles", figure, epoch, close=False)
        for site, percentile in state.percentiles.items():
            writer.add_scalar(f"search/percentile/{site}", percentile, epoch)
        return True

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log SQNR per layer and histograms with clip bounds."""
        assert isinstance(pl_module, Watchable)
        writer = _writer(trainer)
        if writer is None:
            return
        # on every process, as a measurement may reduce over them; written by the first
        sqnr, clips = pl_module.layer_sqnr(), pl_module.clip_histograms()
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch
        for layer, decibel in sqnr.items():
            writer.add_scalar(f"quant/sqnr/{layer}", decibel, epoch)
        for site, (values, _, _) in clips.items():
            writer.add_histogram(f"quant/values/{site}", values, epoch)
        for tower, some in by_prefix(clips).items():
            writer.add_figure(
                f"quant/clip/{tower}", clip_histogram_figure(some), epoch, close=False
            )


def _writer(trainer: Trainer) -> SummaryWriter | None:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            return logger.experiment
    return None

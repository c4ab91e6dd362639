"""Gives what a calibration has decided, and how well it fits, to the loggers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from qvlm_lightning.calibration.monitoring import HEADLINES, search_scalars, sqnr_scalars
from qvlm_lightning.calibration.phases import Phases
from qvlm_lightning.calibration.state import CalibrationState
from qvlm_lightning.errors import InputError
from qvlm_lightning.plots import (
    by_prefix,
    clip_histogram_figure,
    partition_figure,
    percentile_figure,
)
from qvlm_lightning.progress import bar


class Watchable(Protocol):
    """What a calibration module shows to this callback."""

    phases: Phases

    @property
    def state(self) -> CalibrationState:
        """Return what has been decided so far."""

    def layer_sqnr(self) -> dict[str, float]:
        """Return layer name -> signal to quantization noise in dB."""

    def clip_histograms(self) -> dict[str, tuple[Tensor, float, float]]:
        """Return site name -> (values, low, high)."""

    def hyperparameters(self) -> dict[str, Any]:
        """Return what the run was told, in plain values."""


class QuantizerMonitor(Callback):
    """Logs every search and measures every few epochs.

    Scalars go to every logger, at the number of optimiser steps: ``headline/`` with what they start
    from in ``baseline/``, the rest in ``detail/`` (see
    :mod:`~qvlm_lightning.calibration.monitoring`). TensorBoard also gets charts that draw both in
    one, figures of every search, and histograms of every measurement. After a resume it drops what
    the interrupted run wrote behind its checkpoint. Without a logger the callback rests.

    Args:
        every_n_epochs: distance between measurements.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise InputError(f"every_n_epochs is {every_n_epochs}, allowed is 1 or more")
        self.every_n_epochs = every_n_epochs
        self._passes_drawn = 0
        self._last: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that has nothing to watch."""
        # asked of the class: the module itself is built later
        if not hasattr(type(pl_module), "layer_sqnr"):
            raise InputError(
                f"QuantizerMonitor watches calibration modules, not {type(pl_module).__name__}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the hyperparameters; lay out the charts and go on behind the checkpoint."""
        if _rests(trainer):
            return
        module = cast(Watchable, pl_module)
        for logger in trainer.loggers:
            logger.log_hyperparams(module.hyperparameters())
        for board in _boards(trainer):
            # Lightning has written the file before, when there was nothing to say
            save_hparams_to_yaml(Path(board.log_dir) / board.NAME_HPARAMS_FILE, board.hparams)
            state = module.state
            _drop_from(board.experiment, state.steps + 1 if state.initialised else 0)
            charts = {
                title: ["Multiline", [f"headline/{name}$", f"baseline/{name}$"]]
                for name, title in HEADLINES.items()
            }
            board.experiment.add_custom_scalars({"Calibration": charts})

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the search at the start of this epoch decided."""
        self._draw(trainer, cast(Watchable, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, every ``every_n_epochs``."""
        self._draw(trainer, cast(Watchable, pl_module))
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure(trainer, cast(Watchable, pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw a final pass that came after the last epoch's end; log results beside the
        hyperparameters.
        """
        module = cast(Watchable, pl_module)
        self._draw(trainer, module)
        if self._last:
            for board in _boards(trainer):
                board.log_hyperparams(module.hyperparameters(), self._last, module.state.steps)

    def state_dict(self) -> dict[str, Any]:
        """Remember what has been drawn: a resumed run does not draw it again."""
        return {"passes_drawn": self._passes_drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over :meth:`state_dict`."""
        self._passes_drawn = state_dict["passes_drawn"]

    def _draw(self, trainer: Trainer, module: Watchable) -> None:
        """Log and draw what the search passes not drawn yet have decided."""
        state = module.state
        new = state.passes[self._passes_drawn :]
        self._passes_drawn = len(state.passes)
        if not new or _rests(trainer):
            return
        with module.phases("measurements"):
            for search in new:
                self._log(trainer, search_scalars(state, search), state.steps)
            for board in _boards(trainer):
                for tag, figure in _figures(module):
                    board.experiment.add_figure(tag, figure, state.steps, close=False)

    def _measure(self, trainer: Trainer, module: Watchable) -> None:
        """Log SQNR per layer and what passes each site."""
        if _rests(trainer):
            return
        steps = module.state.steps
        scalars = sqnr_scalars(module.layer_sqnr(), module.state.sqnr_minmax)
        self._log(trainer, scalars, steps)
        for board in _boards(trainer):
            for site, (values, _, _) in module.clip_histograms().items():
                board.experiment.add_histogram(f"detail/values/{site}", values, steps)

    def _log(self, trainer: Trainer, scalars: dict[str, float], step: int) -> None:
        self._last |= {n: x for n, x in scalars.items() if n.startswith("headline/")}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)


def _rests(trainer: Trainer) -> bool:
    """Whether there is nobody to log for: no logger, another process, or a trial of one batch."""
    trial = cast(Any, trainer).fast_dev_run  # undeclared: the Trainer sets it on itself
    return not trainer.loggers or not trainer.is_global_zero or bool(trial)


def _figures(module: Watchable) -> Iterator[tuple[str, Figure]]:
    """Yield tag and figure of all that was decided, and show how far the drawing is."""
    state, clips = module.state, by_prefix(module.clip_histograms())
    count = 1 + len(state.dependency) + len(clips)
    yield "detail/percentiles", percentile_figure(state.percentiles)
    bar("figures", 1, count)
    # without a measured dependency every layer is a block of its own
    for number, tower in enumerate(state.dependency, 2):
        blocks = {tower: state.partition[tower]}
        figure = partition_figure(state.dependency, state.threshold, blocks)
        yield f"detail/dependency/{tower}", figure
        bar("figures", number, count)
    for number, (prefix, some) in enumerate(clips.items(), count - len(clips) + 1):
        yield f"detail/clip/{prefix}", clip_histogram_figure(some)
        bar("figures", number, count)


def _boards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _drop_from(writer: SummaryWriter, step: int) -> None:
    """Let readers forget what earlier event files of the folder have from ``step`` on.

    TensorBoard takes a session that starts at a step for one that goes on behind an interruption.
    """
    start = SessionLog(status=SessionLog.START)
    files: Any = writer.file_writer  # open until the run ends
    files.add_event(Event(step=step, session_log=start))

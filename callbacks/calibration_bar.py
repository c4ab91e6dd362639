"""The progress bar of a calibration: optimiser steps with the loss; passes have their own."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.progress import bar, close


class CalibrationBar(ProgressBar):
    """Shows epoch, step and loss of the optimisation, and how long is left.

    Methods without optimisation have no step to show.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown = True

    def disable(self) -> None:
        """Show nothing: Lightning asks this of all processes but the main one."""
        self._shown = False

    def enable(self) -> None:
        """Show the bar."""
        self._shown = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step that was taken."""
        if not self._shown or not isinstance(pl_module, QuantModule) or not pl_module.optimises:
            return
        if trainer.current_epoch >= pl_module.epochs:  # the final pass takes no step
            return
        steps, total = pl_module.state.steps, pl_module.epochs * pl_module.steps_per_epoch
        loss = "" if pl_module.last_loss is None else f", loss {pl_module.last_loss:.4g}"
        bar("optimisation", steps, total, f"epoch {trainer.current_epoch + 1}{loss}")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the bars where they stopped."""
        close()

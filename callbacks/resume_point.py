"""Checkpoints to resume from: always ``checkpoints/last.ckpt``, replaced as a whole."""

from pathlib import Path
from typing import Any, cast

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from qvlm_lightning.calibration.checkpoint import LAST, CheckpointFiles
from qvlm_lightning.errors import InputError


class ResumePoint(ModelCheckpoint):
    """Writes ``<default_root_dir>/checkpoints/last.ckpt`` every few steps and at the end of every
    epoch.

    A ``ModelCheckpoint`` so that ``--ckpt_path last`` finds the file; the one before it stays as
    ``last.previous.ckpt``. Unlike its parent it also saves an epoch in which no optimiser step was
    taken (the final pass; methods without training).

    Args:
        every_n_steps: optimiser steps between checkpoints.
    """

    def __init__(self, every_n_steps: int = 4) -> None:
        if every_n_steps < 1:
            raise InputError(f"every_n_steps {every_n_steps} is not allowed; at least 1")
        super().__init__(save_last=True, save_top_k=0)
        self.every_n_steps = every_n_steps
        self._saved_at = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the folder under the run folder, and Lightning's own writer of files out of use."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # another one is the user's
            trainer.strategy.checkpoint_io = CheckpointFiles()
        self.dirpath = str(Path(trainer.default_root_dir).resolve() / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every ``every_n_steps`` optimiser steps."""
        step = trainer.global_step
        if step and step != self._saved_at and step % self.every_n_steps == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of every epoch."""
        self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There is no validation to save after."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of the last epoch has saved everything; a trial saves nothing."""

    def _save(self, trainer: Trainer) -> None:
        if cast(Any, trainer).fast_dev_run:  # undeclared: the Trainer sets it on itself
            return
        self._saved_at = trainer.global_step
        assert self.dirpath is not None
        self.last_model_path = str(Path(self.dirpath) / LAST)
        trainer.save_checkpoint(self.last_model_path, weights_only=False)

"""What happens between epochs, however the run got there."""

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.schedule import PassSettings
from qvlm_lightning.errors import InputError


class BetweenEpochs(Callback):
    """Acts before the first batch of every epoch; whether anything is due, the module says."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the module what will be asked of it; the programs do so before it is built.

        Raises:
            InputError: the module is not a :class:`QuantModule`.
        """
        _quantized(self, pl_module).register_pass(type(self).__name__, self.settings())

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act if something is due."""
        self.act(_quantized(self, pl_module))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Act: resumed behind the last batch of an epoch, Lightning skips the next one's start."""
        self.act(_quantized(self, pl_module))

    def settings(self) -> PassSettings:
        """Return what this callback does; nothing of its own by default."""
        return PassSettings({})

    @abstractmethod
    def act(self, module: QuantModule) -> None:
        """Do what is due, at most once per epoch."""


def _quantized(callback: Callback, module: LightningModule) -> QuantModule:
    if not isinstance(module, QuantModule):
        name = type(callback).__name__
        raise InputError(f"{name} works on a QuantModule, not on {type(module).__name__}")
    return module

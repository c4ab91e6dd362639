"""When to search the percentiles."""

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method


class PercentileSearch(Callback):
    """Searches between epochs: at epoch 0 all towers, later and after the last epoch the decoder
    (A21).

    Stands behind :class:`EntropyRepartition` in the list of callbacks, so that it uses the new
    blocks.

    Args:
        method: how a block is searched: ``MinMax``, ``SequentialSearch`` (eq. 2) or ``JointSearch``
            (eq. 3).
    """

    def __init__(self, method: Method) -> None:
        self.method = method

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that has nothing to search."""
        if not isinstance(pl_module, QuantModule):
            raise InputError(
                f"PercentileSearch works on a QuantModule, not on {type(pl_module).__name__}"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search if it is due."""
        self._act(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The same: resumed behind the last batch of an epoch, Lightning skips the epoch's
        start.
        """
        self._act(pl_module)

    def _act(self, pl_module: LightningModule) -> None:
        module = cast(QuantModule, pl_module)  # setup() has checked
        epoch = module.epoch_due(module.state.passes_done)
        if epoch is not None:
            module.search(epoch, self.method)

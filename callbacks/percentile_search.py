"""When to decide the blocks."""

from typing import cast

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_deprecation

from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.callbacks.between_epochs import BetweenEpochs
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method


class PercentileSearch(BetweenEpochs):
    """Lets the module's method decide between epochs: at epoch 0 all towers, later and after the
    last epoch the decoder (docs/paper.md, A21).

    Stands behind :class:`EntropyRepartition` in the list of callbacks, so that it uses the new
    blocks.

    Args:
        method: deprecated, give ``model.method``.
    """

    def __init__(self, method: Method | None = None) -> None:
        self.method = method

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module without a method.

        Raises:
            InputError: there is nothing to search with.
        """
        super().setup(trainer, pl_module, stage)
        module = cast(QuantModule, pl_module)  # the parent has checked
        if self.method is not None and module.method is not self.method:
            if module.method is not None:
                raise InputError(
                    "both model.method and the method of PercentileSearch are given; give "
                    "model.method only"
                )
            rank_zero_deprecation("the method of PercentileSearch is now model.method")
            module.method = self.method
        if module.method is None:
            raise InputError(
                "PercentileSearch needs a method; give model.method, such as "
                "qvlm_lightning.methods.JointSearch"
            )

    def act(self, module: QuantModule) -> None:
        """Decide if it is due."""
        epoch = module.epoch_due(module.state.passes_done)
        if epoch is None:
            return
        # a streamed model would be read once more
        if module.reported and not module.state.passes and not module.streaming:
            module.state.sqnr_minmax = module.layer_sqnr()
        with module.phases("search"):
            module.search(epoch)

"""When to search the percentiles."""

from typing import Any

from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.callbacks.between_epochs import BetweenEpochs
from qvlm_lightning.methods.base import Method


class PercentileSearch(BetweenEpochs):
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

    def describe(self) -> dict[str, Any]:
        """Return the method and its settings."""
        return {"callback": "PercentileSearch", **self.method.describe()}

    def act(self, module: QuantModule) -> None:
        """Search if it is due."""
        epoch = module.epoch_due(module.state.passes_done)
        if epoch is not None:
            module.search(epoch, self.method)

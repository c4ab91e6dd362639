"""When to measure the dependency and cut the towers into blocks."""

from typing import Any

from qvlm_lightning.calibration.calibrator import Algorithm
from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.schedule import PassSettings
from qvlm_lightning.callbacks.between_epochs import BetweenEpochs
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.proxies import ConditionalEntropy, Proxy
from qvlm_lightning.quant.partition import resolve_threshold


class EntropyRepartition(BetweenEpochs):
    """Re-partitions between epochs (eq. 4-7): at epoch 0 all towers, later and at the end the
    decoder.

    Args:
        max_depth: most units in a block (Sec. 4.1: 3).
        threshold: h_0: ``mean`` of the tower's edges, ``quantile:q``, or a number in nats.
        proxy: what stands for the dependency; default conditional entropy.
        algorithm: ``greedy`` or ``dp``; as controls ``fixed`` or ``shuffled``
            (:meth:`~qvlm_lightning.calibration.Calibrator.repartition`).
        samples: (sample, token, channel) triples per tower.
    """

    def __init__(
        self,
        max_depth: int = 3,
        threshold: str | float = "mean",
        proxy: Proxy | None = None,
        algorithm: Algorithm = "greedy",
        samples: int = 16384,
    ) -> None:
        if max_depth < 1:
            raise InputError(
                f"max_depth {max_depth} is not allowed; a block holds at least 1 layer"
            )
        if samples < 1:
            raise InputError(f"samples {samples} is not allowed; at least 1")
        # a wrong word should not wait for the first measurement
        resolve_threshold(threshold, [0.0, 1.0])
        self.proxy = proxy or ConditionalEntropy()
        self.options: dict[str, Any] = {
            "threshold": threshold,
            "max_depth": max_depth,
            "algorithm": algorithm,
            "samples": samples,
        }

    def settings(self) -> PassSettings:
        """Return proxy and options."""
        settings = {"proxy": type(self.proxy).__name__, **self.options}
        return PassSettings(settings, self.options["max_depth"], self.proxy.method)

    def act(self, module: QuantModule) -> None:
        """Re-partition if it is due."""
        epoch = module.epoch_due(module.state.partitions_done)
        if epoch is not None:
            with module.phases("dependency"):
                module.repartition(epoch, self.proxy, **self.options)

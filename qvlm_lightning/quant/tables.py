"""Ranges that have been read off an observer, so that its reservoir can be let go."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.observers import RangeObserver


class RangeTable:
    """What a calibration asks of a :class:`RangeObserver`, for percentiles named in advance.

    A reservoir of 8,192 tokens is larger than the layer it belongs to; this is a few vectors.

    Args:
        observer: has seen all samples.
        percentiles: those that will be asked for; 1 is always there.
        device: where they are computed.
    """

    def __init__(
        self,
        observer: RangeObserver,
        percentiles: Sequence[float],
        device: torch.device | None = None,
    ) -> None:
        self.percentiles = list(dict.fromkeys([1.0, *percentiles]))
        self.tokens = observer.tokens
        self._low, self._high = observer.ranges(self.percentiles, device)
        self._channel = observer.channel_range()
        self._sample = observer.sample().clone()

    def ranges(
        self, percentiles: Sequence[float], device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return :meth:`RangeObserver.ranges` of the percentiles, equal to the bit.

        Raises:
            InputError: one of them was not named in advance.
        """
        for percentile in percentiles:
            if percentile not in self.percentiles:
                raise InputError(
                    f"percentile {percentile} was not kept when the statistics were taken; "
                    f"allowed: {', '.join(map(str, self.percentiles))}"
                )
        rows = torch.tensor([self.percentiles.index(p) for p in percentiles])
        low, high = (x[rows.to(x.device)] for x in (self._low, self._high))
        return (low, high) if device is None else (low.to(device), high.to(device))

    def channel_range(self) -> tuple[Tensor, Tensor]:
        """Return :meth:`RangeObserver.channel_range`."""
        return self._channel

    def sample(self, count: int = 4096) -> Tensor:
        """Return at most ``count`` of the values kept for pictures."""
        return self._sample[:: -(-self._sample.numel() // count)]

"""The interface of a method that decides the ranges of one block."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qvlm_lightning.nn.block import Block


@dataclass
class Solution:
    """What a method chose for a block.

    Attributes:
        choice: [number of sites] int64, the index of the chosen percentile of each site.
        objective: name of a way to choose (``minmax``, ``sequential``, ``joint``) -> J at the
            block's output.
    """

    choice: Tensor
    objective: dict[str, float]


class Method(ABC):
    """Chooses among the candidates of a block; knows no model family and owns no state."""

    percentiles: list[float]

    def describe(self) -> dict[str, Any]:
        """Return plain values that say which method with which settings this is."""
        settings = {k: v for k, v in vars(self).items() if isinstance(v, int | float | str | list)}
        return {"method": type(self).__name__, **settings}

    @abstractmethod
    def solve(self, block: Block) -> Solution:
        """Return the choice for ``block``; the caller commits it and advances the quantized
        chain.
        """

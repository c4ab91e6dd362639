"""The product of several packed layers with the input that they share.

Shapes: N rows (tokens), I inputs, O outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from qvlm_lightning.nn.packed_input import InputCodes, PackedInput
from qvlm_lightning.nn.packing import PackedWeight
from qvlm_lightning.nn.version_key import version_key

Together = Callable[[Sequence[PackedWeight], Tensor | InputCodes], list[Tensor]]
"""(weights with the same inputs, groups, width and type; rows [N, I]) -> output [N, O] of each."""


class SharedProduct:
    """Outputs of layers that read one input: computed in one call for the first layer that asks,
    taken by each of the others.

    Args:
        weights: of the layers, in their order.
        together: multiplies with all of them.
    """

    def __init__(self, weights: Sequence[PackedWeight], together: Together) -> None:
        self.weights, self.together = weights, together
        self._kept: tuple[tuple[object, ...], Tensor, dict[int, Tensor]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave what is kept out of a copy: there it belongs to no tensor."""
        return SharedProduct, (self.weights, self.together)

    def takes_all_of(self, site: PackedInput) -> bool:
        """Return whether no other layer reads the codes of a site."""
        return len(self.weights) == site.consumers

    def take(self, place: int, x: Tensor) -> Tensor | None:
        """Return the output [N, O] that was computed for a layer from this very tensor, and let it
        go; ``None`` if there is none.

        Args:
            place: of the layer.
            x: its input, as it was given.
        """
        if self._kept is None:
            return None
        key, _, outputs = self._kept
        if key != version_key(x):
            return None
        y = outputs.pop(place, None)
        if not outputs:
            self._kept = None
        return y

    def compute(self, place: int, x: Tensor, given: Tensor | InputCodes) -> Tensor:
        """Return the output [N, O] of a layer and keep those of the others, as long as none of them
        asks for another input.

        Args:
            place: of the layer.
            x: its input, as it was given.
            given: the same as rows [N, I] or their codes.
        """
        key = version_key(x)
        if key is None:  # nobody could tell whether what is kept is still right
            return self.together([self.weights[place]], given)[0]
        outputs = dict(enumerate(self.together(self.weights, given)))
        y = outputs.pop(place)
        # x is kept too: as long as it lives, no other tensor has its identity
        self._kept = (key, x, outputs)
        return y

"""A decision: named tensors."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Decision:
    """What a method decided for a block.

    Attributes:
        tensors: by their full name in the model: ``<linear>.weight``, ``<norm>.weight``,
            ``<linear>.weight_quantizer.low``, ``<linear>.input_quantizer.high`` ... Quantizers take
            them over; anything else is what the layer holds while it is quantized, in the model's
            type.
        scores: name of a way to decide (``minmax``, ``sequential``, ``gptq`` ...) -> J at the
            block's output, the decision's own last.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    def __or__(self, other: "Decision") -> "Decision":
        """Return both decisions; where both decide a tensor, ``other`` does."""
        return Decision(self.tensors | other.tensors, self.scores | other.scores)

    def detached(self) -> "Decision":
        """Return the same without a graph, in tensors of its own."""
        return Decision({n: x.detach().clone() for n, x in self.tensors.items()}, dict(self.scores))

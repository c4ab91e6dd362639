"""Quadratic forms of rounding errors: what a weight's rounding does to an output.

Shapes: P parts (heads), R rows of a part, I inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quadratic:
    """``tr(G_p E_p H_p E_p^T)``, the error of the parts of a weight whose rounding errors are E.

    Attributes:
        inputs: H, [P, I, I], or [1, I, I] for one matrix of all parts.
        outputs: G, [P, R, R], symmetric; ``None`` for the identity: the rows then do not meet.
    """

    inputs: Tensor
    outputs: Tensor | None = None

    def by_row(self, error_PRI: Tensor) -> Tensor:
        """Return what each row adds to the error of its part, [P, R].

        Of rows that meet, single shares may be negative; their sum is not.

        Example:
            >>> gram = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]])
            >>> Quadratic(gram).by_row(torch.tensor([[[1.0, 2.0]]]))
            tensor([[7.]])
        """
        return (self.gradient(error_PRI) * error_PRI.to(self.inputs.dtype)).sum(dim=-1)

    def gradient(self, error_PRI: Tensor) -> Tensor:
        """Return ``G E H``, half the gradient of the error, [P, R, I]."""
        product = error_PRI.to(self.inputs.dtype) @ self.inputs
        return product if self.outputs is None else self.outputs @ product

    def parts(self, weight_OI: Tensor) -> Tensor:
        """Return a weight as [P, R, I]."""
        count = len(self.inputs) if self.outputs is None else len(self.outputs)
        return weight_OI.reshape(count, -1, weight_OI.shape[-1])

    def normalized(self) -> "Quadratic":
        """Return the same in float32 with a mean diagonal of 1 of H and of G, part by part."""
        outputs = None if self.outputs is None else _normalized(self.outputs)
        return Quadratic(_normalized(self.inputs), outputs)


def _normalized(matrices_PNN: Tensor) -> Tensor:
    mean_P = matrices_PNN.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    mean_P = torch.where(mean_P > 0, mean_P, torch.ones_like(mean_P))
    return (matrices_PNN / mean_P[:, None, None]).float()

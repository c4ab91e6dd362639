"""Linear transforms of a site's input that run with the model, in front of its quantizer.

With ``y = x P`` and ``W' = W P^-T`` the layer computes the same, ``y W'^T = x W^T``, but what is
quantized is y (QuaRot, arXiv:2404.00456, section 4; FlatQuant, arXiv:2410.09426, section 3).
P is the Kronecker product of two small matrices.

Shapes: I input channels, I = a * b.
"""

from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.nn.version_key import version_key


class OnlineTransform(nn.Module):
    """Multiplies the last dimension by ``left (x) right``.

    Args:
        left: [a, a].
        right: [b, b].
        consumers: number of Linear layers that read the same input.
    """

    left: Tensor
    right: Tensor

    def __init__(self, left: Tensor, right: Tensor, consumers: int = 1) -> None:
        super().__init__()
        self.register_buffer("left", left.to(torch.float32))
        self.register_buffer("right", right.to(torch.float32))
        self.consumers = consumers
        # q, k and v read the very same tensor: transform it once
        self._shared: tuple[tuple[object, ...], Tensor, Tensor, int] | None = None

    @property
    def macs(self) -> int:
        """Multiplications and additions per token."""
        a, b = len(self.left), len(self.right)
        return a * b * ((a if a > 1 else 0) + (b if b > 1 else 0))

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x`` [.., I]; computed in float32, returned in the type of ``x``."""
        a, b = len(self.left), len(self.right)
        parts = x.float().reshape(*x.shape[:-1], a, b)
        if b > 1:
            parts = parts @ self.right
        if a > 1:
            parts = self.left.T @ parts
        return parts.reshape(x.shape).to(x.dtype)

    def of_weight(self, weight_OI: Tensor) -> Tensor:
        """Return ``W P^-T`` in the type of the weight."""
        return inverse_in_weight(weight_OI, self.left, self.right).to(weight_OI.dtype)

    def make_full(self) -> None:
        """Make one matrix of the two factors; the transform stays the same."""
        self.right = torch.kron(self.left, self.right)
        self.left = torch.ones_like(self.left[:1, :1])

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give a Linear layer the transformed input; a forward pre-hook."""
        x = args[0]
        own = None if self.consumers == 1 else version_key(x, self.left, self.right)
        key = None if own is None else (*own, torch.is_grad_enabled(), id(x))
        if key is not None and self._shared is not None and self._shared[0] == key:
            _, _, y, left = self._shared
            self._shared = (key, x, y, left - 1) if left > 1 else None
            return y, *args[1:]
        y = self(x)
        # x is kept too: as long as it lives, no other tensor has its identity
        self._shared = None if key is None else (key, x, y, self.consumers - 1)
        return y, *args[1:]

    def forget(self) -> None:
        """Let the kept output go."""
        self._shared = None

    def extra_repr(self) -> str:
        """Show the factors in ``print(model)``."""
        return f"{len(self.left)} x {len(self.right)}"


def inverse_in_weight(weight_OI: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return ``W (left (x) right)^-T``, [O, I] float64; differentiable in the factors.

    Computed in float64: the inverse of a matrix that was learned may be large.
    """
    left_T, right_T = (torch.linalg.inv(x.double()).T for x in (left, right))
    parts = weight_OI.double().reshape(len(weight_OI), len(left), len(right))
    return (left_T.T @ parts @ right_T).reshape(weight_OI.shape)


def taken_out_of_weight(weight_OI: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return ``W (left (x) right)^T``, [O, I] float64: what :func:`inverse_in_weight` was given."""
    parts = weight_OI.double().reshape(len(weight_OI), len(left), len(right))
    return (left.double() @ parts @ right.double().T).reshape(weight_OI.shape)

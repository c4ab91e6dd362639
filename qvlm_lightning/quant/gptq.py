"""GPTQ: rounding one input channel after another while the rest makes up for the error.

Frantar et al., ICLR 2023 (arXiv:2210.17323), eq. 2 and 3, with their three steps: a common order
for all rows, lazy updates in blocks, and the Cholesky factor of the inverse Hessian. Everything is
computed in float64: rounding is discontinuous, and codes should not depend on the machine.

Shapes: O outputs, I inputs, G groups.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.weight_ranges import quadratic_rows
from qvlm_lightning.quant.weights import weight_qparams

RangesOf = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Gives low and high [O, 1, 1] of a group from its weight [O, J] and its columns."""

_MOST_DAMPING = 1.0


@dataclass(frozen=True)
class Grid:
    """The values that a weight may take.

    Attributes:
        low, high: [O, G, 1], range of each output channel or group of inputs.
        num_bits: width b.
        symmetric: symmetric codes.
        dtype: type of the model, to which scales are rounded.
    """

    low: Tensor
    high: Tensor
    num_bits: int
    symmetric: bool
    dtype: torch.dtype

    def qparams(self) -> tuple[Tensor, Tensor, int, int]:
        """Return scale and zero point, [O, G] float64, and the least and the largest code."""
        scale, zero_point = weight_qparams(
            self.low, self.high, self.num_bits, self.symmetric, self.dtype
        )
        half = 2 ** (self.num_bits - 1)
        least, most = (-half, half - 1) if self.symmetric else (0, 2 * half - 1)
        return scale.double(), zero_point.double(), least, most


@torch.no_grad()
def inverse_factor(gram_II: Tensor, damp: float) -> Tensor:
    """Return the upper triangular U with ``U^T U = (H + damp mean(diag H) I)^-1``, [I, I] float64.

    Args:
        gram_II: H, a Gram matrix of inputs; of channels that are always 0 the row is 0, and without
            any tokens all of it.
        damp: share of the mean diagonal that is added; raised tenfold for as long as the matrix is
            not positive definite.

    Raises:
        InputError: it has entries that are not finite, or is not positive even so.

    Example:
        >>> inverse_factor(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), 0.0)
        tensor([[0.5000, 0.0000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    hessian = gram_II.double()
    mean = hessian.diagonal().mean()
    if not bool(hessian.isfinite().all()):
        raise InputError("the inputs of a layer are not finite; calibrate in another type")
    scale = mean if bool(mean > 0) else torch.ones_like(mean)
    eye = torch.eye(len(hessian), dtype=torch.float64, device=hessian.device)
    while True:
        # H reversed = L L^T gives H^-1 = M^T M with M = L^-1 reversed, upper triangular
        factor, failed = torch.linalg.cholesky_ex((hessian + damp * scale * eye).flip(0, 1))
        if not int(failed):
            return torch.linalg.solve_triangular(factor, eye, upper=False).flip(0, 1)
        if damp >= _MOST_DAMPING:
            raise InputError("the Gram matrix of a layer's inputs is not positive")
        damp = max(10 * damp, 1e-6)


@torch.no_grad()
def sweep(
    weight_OI: Tensor,
    factor_II: Tensor,
    grid: Grid,
    order_I: Tensor | None = None,
    ranges_of: RangesOf | None = None,
    block: int = 64,
) -> tuple[Tensor, Grid]:
    """Return the rounded weight [O, I], float64, and its grid.

    Args:
        weight_OI: weight of a Linear layer.
        factor_II: :func:`inverse_factor` of its inputs' Gram matrix, in ``order_I``.
        grid: what it may become.
        order_I: order of the input channels; ``None`` for their own.
        ranges_of: chooses the range of every group from what its weight has become when its turn
            comes, in the channels' own order only; ``None`` keeps those of ``grid``.
        block: input channels between two updates of all that is left.
    """
    inputs = weight_OI.shape[1]
    order_I = torch.arange(inputs, device=weight_OI.device) if order_I is None else order_I
    size = inputs // grid.low.shape[1]
    # an input channel is a row in memory: it is read and rounded as a whole
    left_IO = weight_OI.double()[:, order_I].T.contiguous()
    done_IO = torch.empty_like(left_IO)
    scale, zero_point, least, most = grid.qparams()
    scale_GO, zero_GO = scale.T.contiguous(), zero_point.T.contiguous()
    low, high, places = grid.low.clone(), grid.high.clone(), order_I.tolist()
    pivots = factor_II.diagonal().tolist()
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        errors_IO = torch.empty_like(left_IO[start:end])
        for i in range(start, end):
            group = places[i] // size
            if ranges_of is not None and i % size == 0:
                columns = slice(i, i + size)
                now_OI = left_IO[columns].T
                if end < i + size:  # what lies behind the block has not been told of its errors yet
                    now_OI = now_OI.clone()
                    told = errors_IO[: i - start].T @ factor_II[start:i, end : i + size]
                    now_OI[:, end - i :] -= told
                bottom, top = (x.to(low.dtype) for x in ranges_of(now_OI, columns))
                low[:, group], high[:, group] = bottom[:, 0], top[:, 0]
                s, z, *_ = replace(grid, low=bottom, high=top).qparams()
                scale_GO[group], zero_GO[group] = s[:, 0], z[:, 0]
            w, s, z, error = left_IO[i], scale_GO[group], zero_GO[group], errors_IO[i - start]
            torch.div(w, s, out=done_IO[i]).round_().add_(z).clamp_(least, most).sub_(z).mul_(s)
            torch.sub(w, done_IO[i], out=error).div_(pivots[i])
            left_IO[i + 1 : end] -= factor_II[i, i + 1 : end, None] * error
        left_IO[end:] -= factor_II[start:end, end:].T @ errors_IO
    done_OI = torch.empty_like(weight_OI, dtype=torch.float64)
    done_OI[:, order_I] = done_IO.T
    return done_OI, replace(grid, low=low, high=high)


@torch.no_grad()
def compensated(weight_OI: Tensor, done_OI: Tensor, factor_II: Tensor, order_I: Tensor) -> Tensor:
    """Return what :func:`sweep` rounded: each input channel as it was when its turn came, having
    made up for those before it, [O, I] float64.

    With errors ``e_i = (w_i - done_i) / U_ii`` of channels w the sweep subtracts ``e_i U_ij`` from
    every later channel j, so that ``W - done = e U``.

    Args:
        weight_OI: the weight before the sweep.
        done_OI: the weight behind it.
        factor_II: U, in ``order_I``.
        order_I: order of the input channels.

    Example:
        >>> factor = torch.tensor([[0.5, 0.25], [0.0, 1.0]])
        >>> given, done = torch.tensor([[1.2, 0.4]]), torch.tensor([[1.0, 0.0]])
        >>> compensated(given, done, factor, torch.tensor([0, 1]))
        tensor([[1.2000, 0.3000]], dtype=torch.float64)
    """
    done = done_OI.double()[:, order_I]
    factor = factor_II.double()
    lost = weight_OI.double()[:, order_I] - done
    error = torch.linalg.solve_triangular(factor, lost, upper=True, left=False)
    found = torch.empty_like(done)
    found[:, order_I] = done + error * factor.diagonal()
    return found


def row_errors(error_OI: Tensor, gram_II: Tensor) -> Tensor:
    """Return ``d H d^T`` of every row d, [O] float64: the squared error of an output channel.

    Example:
        >>> row_errors(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        tensor([7.], dtype=torch.float64)
    """
    return quadratic_rows(error_OI.double(), gram_II.double())

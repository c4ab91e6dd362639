"""Learned rounding (AdaRound; Nagel et al., ICML 2020, arXiv:2004.10568).

Every weight is rounded down and raised by a share h of a step that is learned: between 0 and 1
first, then driven to either end by a regularizer that becomes steeper.

Shapes: P parts, R rows of a part, I inputs, G groups of inputs.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qvlm_lightning.quant.quadratic import Quadratic

_LEAST, _MOST = -0.1, 1.1
"""gamma and zeta of eq. 23: ends of the sigmoid before it is clipped."""


@dataclass(frozen=True)
class Steps:
    """The values a weight may take, as whole steps of a scale, less the zero point.

    Attributes:
        scale: [.., G], positive.
        least, most: [.., G], least and largest number of steps.
    """

    scale: Tensor
    least: Tensor
    most: Tensor

    def wide(self, inputs: int) -> "Steps":
        """Return the same with a column for each of I inputs, [.., I]."""
        size = inputs // self.scale.shape[-1]
        scale, least, most = (
            x.repeat_interleave(size, dim=-1) for x in (self.scale, self.least, self.most)
        )
        return replace(self, scale=scale, least=least, most=most)


@dataclass(frozen=True)
class Annealing:
    """How roundings are learned.

    The defaults end where the 2,000 steps at 0.015 of aespa's paper do, in half the time
    (docs/benchmarks.md).

    Attributes:
        steps: of Adam.
        lr: its learning rate.
        weight: of the regularizer, against an error in steps of the scale with a mean diagonal of 1
            (:meth:`Quadratic.normalized`).
        warm_up: share of the steps without regularizer.
        first_beta, last_beta: exponent of the regularizer behind the warm-up and at the end.
    """

    steps: int = 1000
    lr: float = 0.05
    weight: float = 10.0
    warm_up: float = 0.2
    first_beta: float = 20.0
    last_beta: float = 2.0

    def beta(self, step: int) -> float | None:
        """Return the exponent of a step; ``None`` during the warm-up.

        Example:
            >>> [Annealing(steps=10).beta(step) for step in (0, 2, 6, 10)]
            [None, 20.0, 11.0, 2.0]
        """
        start = self.warm_up * self.steps
        if step < start:
            return None
        share = (step - start) / (self.steps - start)
        return self.first_beta + share * (self.last_beta - self.first_beta)


def raised(free: Tensor) -> Tensor:
    """Return the share h of a step by which a weight is raised, in [0, 1] (eq. 23).

    Example:
        >>> raised(torch.tensor([-9.0, 0.0, 9.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return (free.sigmoid() * (_MOST - _LEAST) + _LEAST).clamp(0, 1)


def free_variable(share: Tensor) -> Tensor:
    """Return what :func:`raised` makes a share in [0, 1] of.

    Example:
        >>> raised(free_variable(torch.tensor([0.0, 0.25, 1.0])))
        tensor([0.0000, 0.2500, 1.0000])
    """
    return ((share - _LEAST) / (_MOST - _LEAST)).logit()


def undecided(share: Tensor, beta: float) -> Tensor:
    """Return ``sum 1 - |2 h - 1|^beta``, 0 if every share is 0 or 1 (eq. 24).

    Example:
        >>> undecided(torch.tensor([0.0, 0.5, 1.0]), 2.0)
        tensor(1.)
    """
    return (1 - (2 * share - 1).abs().pow(beta)).sum()


def softly_rounded(down: Tensor, share: Tensor, steps: Steps) -> Tensor:
    """Return ``s clip(down + h, least, most)``; gradients reach the share.

    Args:
        down: whole steps below a weight, [.., I].
        share: h, [.., I].
        steps: with a column for each input.
    """
    return torch.minimum(torch.maximum(down + share, steps.least), steps.most) * steps.scale


def learned_rounding(
    start_PRI: Tensor,
    wanted_PRI: Tensor,
    steps: Steps,
    objective: Quadratic,
    annealing: Annealing | None = None,
) -> Tensor:
    """Return a weight with learned roundings, [P, R, I] float32, no worse than the start's nearest
    values are, part by part.

    The error ``tr(G E H E^T)`` with E the rounded less the wanted weight needs no data: every step
    sees all of it.

    Args:
        start_PRI: what is rounded, such as a weight that has made up for errors of others.
        wanted_PRI: what the rounded weight is compared with.
        steps: values it may take, [P, R, G].
        objective: H and G.
        annealing: how; default: of :class:`Annealing`.
    """
    annealing, steps = annealing or Annealing(), steps.wide(start_PRI.shape[-1])
    start, wanted = start_PRI.float() / steps.scale, wanted_PRI.float()
    form, down = objective.normalized(), start.floor()
    unit = steps.scale.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    size, target = steps.scale / unit, wanted / unit
    free = free_variable(start - down).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=annealing.lr, fused=True)
    for step in range(annealing.steps):
        free.grad = _slope(free.detach(), down, replace(steps, scale=size), target, form)
        beta = annealing.beta(step)
        if beta is not None:
            free.grad += annealing.weight * _undecided_slope(free.detach(), beta)
        optimizer.step()
    done = softly_rounded(down, (free.detach() >= 0).float(), steps)
    near = softly_rounded(down, (start - down).round(), steps)
    errors = [objective.by_row(x - wanted).sum(dim=-1) for x in (done, near)]
    return torch.where((errors[0] < errors[1])[:, None, None], done, near)


def _slope(free: Tensor, down: Tensor, steps: Steps, target: Tensor, form: Quadratic) -> Tensor:
    """Return the gradient of ``tr(G E H E^T)``, E the softly rounded weight less its target.

    Written out because it takes half the time of autograd's.
    """
    value = down + raised(free)
    clipped = torch.minimum(torch.maximum(value, steps.least), steps.most)
    slope = 2 * form.gradient(clipped * steps.scale - target) * steps.scale
    return slope.mul_(clipped == value).mul_(_raised_slope(free))


def _undecided_slope(free: Tensor, beta: float) -> Tensor:
    """Return the gradient of :func:`undecided` of the shares."""
    side = 2 * raised(free) - 1
    slope = side.abs().pow_(beta - 1).mul_(side.sign()).mul_(-2 * beta)
    return slope.mul_(_raised_slope(free))


def _raised_slope(free: Tensor) -> Tensor:
    """Return the derivative of :func:`raised`, 0 where it is clipped."""
    sigmoid = free.sigmoid()
    share = sigmoid * (_MOST - _LEAST) + _LEAST
    inside = (share > 0) & (share < 1)
    return (sigmoid * (1 - sigmoid) * (_MOST - _LEAST)).mul_(inside)

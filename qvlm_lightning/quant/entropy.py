"""Dependency between neighbouring layers: soft levels, joint distributions and entropies (eq. 4-6).

Shapes: S sampled elements, M levels. U is the level in layer k, V the one in layer k + 1 at the
same (sample, token, channel). Entropies are in nats.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.qparams import level_qparams

Temperature = float | Literal["paper"]


def real_codes(x: Tensor, low: Tensor, high: Tensor, levels: int) -> Tensor:
    """Return the codes before rounding, ``x / scale + zero_point``; the range gets no gradient.

    Args:
        x: any shape.
        low: lower bound, broadcastable to ``x``; extended to contain 0 like ``high``.
        high: upper bound.
        levels: M.

    Returns:
        Tensor like ``x``, float32 or float64; beyond [0, M - 1] where ``x`` is outside the range.

    Example:
        >>> real_codes(torch.tensor([-5.0, 0.25]), torch.tensor(-5.0), torch.tensor(10.0), 16)
        tensor([0.0000, 5.2500])
    """
    scale, zero_point = level_qparams(low.detach(), high.detach(), levels)
    return x.to(torch.promote_types(x.dtype, scale.dtype)) / scale + zero_point


def hard_codes(u: Tensor, levels: int) -> Tensor:
    """Return the nearest level of real codes, int64 in [0, M - 1].

    Example:
        >>> hard_codes(torch.tensor([-0.7, 3.2, 99.0]), 16)
        tensor([ 0,  3, 15])
    """
    return u.round().clamp(0, levels - 1).long()


def soft_assignment(
    u: Tensor, levels: int, temperature: Temperature, delta: Tensor | float | None = None
) -> Tensor:
    """Return the probability of each level, ``softmax(-(u - a)^2 / temperature)`` (eq. 5).

    The form is free of the scale of the activations. ``temperature="paper"`` is eq. 5 as printed,
    ``exp(-(x - q)^2 / delta)`` in the units of the activations, which comes to ``1 / delta`` here.

    Args:
        u: real codes, [S] or any shape; clamped to [0, M - 1].
        levels: M.
        temperature: positive; towards 0 the assignment becomes one-hot.
        delta: scale of each element, for ``"paper"``; broadcastable to ``u``.

    Returns:
        [S, M], or the shape of ``u`` with M behind it.

    Raises:
        InputError: a temperature that is not positive, or ``"paper"`` without ``delta``.

    Example:
        >>> soft_assignment(torch.tensor([0.5]), 2, 0.25)
        tensor([[0.5000, 0.5000]])
    """
    u = u.to(torch.promote_types(u.dtype, torch.float32))
    distance = (u.clamp(0, levels - 1)[..., None] - torch.arange(levels, device=u.device)).square()
    if temperature == "paper":
        if delta is None:
            raise InputError("temperature 'paper' needs delta, the scale of the codes")
        step = torch.as_tensor(delta, dtype=u.dtype, device=u.device).expand_as(u)[..., None]
        return torch.softmax(-distance * step, dim=-1)
    if not isinstance(temperature, float | int) or not temperature > 0:
        raise InputError(
            f"temperature {temperature!r} is not allowed; a positive number or 'paper'"
        )
    return torch.softmax(-distance / temperature, dim=-1)


def soft_joint_sums(
    u_a: Tensor,
    u_b: Tensor,
    levels: int,
    temperature: Temperature,
    delta: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return the soft joint counts of two layers, differentiable; divide by S for the distribution.

    They are sums so that processes can add theirs up before anything is normalised or logged.

    Args:
        u_a: real codes of layer k, [S].
        u_b: real codes of layer k + 1 at the same places, [S].
        levels: M.
        temperature: see :func:`soft_assignment`.
        delta: scales of both layers' elements, for ``temperature="paper"``.

    Returns:
        [M, M], layer k in rows; sums to S.
    """
    delta_a, delta_b = delta if delta is not None else (None, None)
    pi_a = soft_assignment(u_a.flatten(), levels, temperature, delta_a)
    pi_b = soft_assignment(u_b.flatten(), levels, temperature, delta_b)
    with torch.autocast(u_a.device.type, enabled=False):
        return pi_a.T @ pi_b


def joint_counts(codes_a: Tensor, codes_b: Tensor, levels: int) -> Tensor:
    """Count pairs of levels; counts of shards add up exactly.

    Args:
        codes_a: whole numbers in [0, M - 1], any shape.
        codes_b: the same number of them, in the same order.
        levels: M.

    Returns:
        [M, M] int64, ``codes_a`` in rows.

    Raises:
        InputError: different numbers of codes, or a code that is no level.
    """
    codes_a, codes_b = codes_a.flatten(), codes_b.flatten()
    if codes_a.numel() != codes_b.numel():
        raise InputError(
            f"{codes_a.numel()} and {codes_b.numel()} codes cannot be paired; "
            "as many of both are needed"
        )
    for codes in (codes_a, codes_b):
        if codes.numel() and not _are_levels(codes, levels):
            raise InputError(
                f"codes from {codes.min().item()} to {codes.max().item()} are not all levels; "
                f"whole numbers from 0 to {levels - 1} are allowed"
            )
    pairs = codes_a.long() * levels + codes_b.long()
    return torch.bincount(pairs, minlength=levels * levels).view(levels, levels)


def joint_distribution(codes_a: Tensor, codes_b: Tensor, levels: int) -> Tensor:
    """Return the joint distribution of two layers' levels (the p of eq. 4).

    Args:
        codes_a: codes of layer k, whole numbers in [0, M - 1], any shape.
        codes_b: codes of layer k + 1 at the same places.
        levels: M.

    Returns:
        [M, M] float64, layer k in rows; sums to 1.

    Raises:
        InputError: no codes, different numbers of codes, or a code that is no level.

    Example:
        >>> joint_distribution(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 2)
        tensor([[0.2500, 0.2500],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    counts = joint_counts(codes_a, codes_b, levels)
    if not counts.any():
        raise InputError("there are no codes to count; at least one pair is needed")
    return counts.double() / counts.sum()


def entropy(p: Tensor) -> Tensor:
    """Return the entropy of a distribution of any shape, in nats; finite gradients at 0.

    Example:
        >>> entropy(torch.tensor([0.5, 0.5]))
        tensor(0.6931)
    """
    return -(p * p.clamp_min(1e-12).log()).sum()


def conditional_entropy(joint: Tensor) -> Tensor:
    """Return H(V|U), the entropy of the next layer's level given this layer's, in nats (eq. 4).

    Args:
        joint: [M, M], layer k in rows, layer k + 1 in columns; sums to 1.

    Returns:
        Scalar in [0, log M].

    Raises:
        InputError: no square matrix of probabilities that sum to 1.

    Example:
        >>> conditional_entropy(torch.full((2, 2), 0.25))
        tensor(0.6931)
    """
    _check_joint(joint)
    return (entropy(joint) - entropy(joint.sum(dim=1))).clamp_min(0)


def mutual_information(joint: Tensor) -> Tensor:
    """Return I(U; V) of a joint distribution [M, M], in nats.

    Example:
        >>> mutual_information(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
        tensor(0.6931)
    """
    _check_joint(joint)
    marginals = entropy(joint.sum(dim=0)) + entropy(joint.sum(dim=1))
    return (marginals - entropy(joint)).clamp_min(0)


def dependency_sum(edges: Sequence[float], first: int, last: int) -> float:
    """Return D over the layers ``first`` to ``last``: the sum of the edges between them (eq. 6).

    Args:
        edges: D(k, k+1) of neighbouring layers; ``edges[k]`` lies between layers k and k + 1.
        first: first layer.
        last: last layer, inclusive; the edge behind it is outside.

    Example:
        >>> dependency_sum([1.0, 2.0, 4.0], 1, 3)
        6.0
    """
    if not 0 <= first <= last <= len(edges):
        raise InputError(
            f"layers {first} to {last} are not a range of the {len(edges) + 1} layers; "
            f"0 <= first <= last <= {len(edges)} is allowed"
        )
    return float(sum(edges[first:last]))


def dependency_average(edges: Sequence[float], first: int, last: int) -> float:
    """Return :func:`dependency_sum` per edge; 0 for a single layer (left side of eq. 7).

    Example:
        >>> dependency_average([1.0, 2.0, 4.0], 1, 3)
        3.0
    """
    return dependency_sum(edges, first, last) / max(last - first, 1)


def _are_levels(codes: Tensor, levels: int) -> bool:
    inside = bool(codes.min() >= 0) and bool(codes.max() <= levels - 1)
    return inside and (not codes.is_floating_point() or bool((codes == codes.round()).all()))


def _check_joint(joint: Tensor) -> None:
    if joint.dim() != 2 or joint.shape[0] != joint.shape[1] or not joint.is_floating_point():
        raise InputError(
            f"a joint distribution of shape {tuple(joint.shape)} and type {joint.dtype} was given; "
            "a square floating-point matrix is needed"
        )
    total = float(joint.detach().sum())
    if not abs(total - 1) < 1e-3:
        raise InputError(f"the joint distribution sums to {total}; it must sum to 1")

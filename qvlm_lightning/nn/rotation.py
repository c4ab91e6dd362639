"""Rotations of a decoder's residual stream, merged into the weights around it.

Every token's state x becomes R x with an orthogonal R: writers are multiplied by R from the left,
readers by its transpose from the right, and the model computes the same (QuaRot, arXiv:2404.00456,
section 4; SliceGPT, arXiv:2401.15024, theorem 1). A norm's gain does not commute with R and goes
into the norm's readers first. A LayerNorm also subtracts the mean, which stays the same only under
an R that leaves the vector of ones where it is.

Shapes: D channels of the stream, O outputs of a reader, I inputs of a writer, V tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import Residual, Source

_ROWS = 8192  # rows of a matrix that are in float64 at a time
_TOLERANCE = 1e-6  # of a matrix given in float32


def random_rotation(width: int, seed: int, keeps_mean: bool = False) -> Tensor:
    """Return a random orthogonal matrix, uniformly distributed: [width, width] float64.

    Args:
        width: D.
        seed: of the generator; the same seed gives the same matrix.
        keeps_mean: leave the vector of ones where it is, as :attr:`Residual.centred` demands.
    """
    generator = torch.Generator().manual_seed(seed)
    free = width - keeps_mean
    normal = torch.randn(free, free, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal().sign()  # without the signs of R, Q is not uniform
    if not keeps_mean:
        return q
    # an orthonormal basis whose first vector is that of ones; only the rest is turned
    basis = torch.eye(width, dtype=torch.float64)
    basis[:, 0] = 1.0
    basis, _ = torch.linalg.qr(basis)
    return basis @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), q) @ basis.T


def untie(model: Any, residual: Residual) -> None:
    """Give the output head a weight of its own, in place, and say so in the configuration.

    A rotated model multiplies embeddings by R, and the head by the gain of the last norm as well,
    so that one Parameter cannot serve both. Nothing happens if they are not tied.

    Args:
        model: a transformers model.
        residual: of the model.
    """
    head = model.get_submodule(residual.head)
    if head.weight is not model.get_submodule(residual.embeddings).weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


@torch.no_grad()
def rotated(
    module_of: Callable[[str], nn.Module],
    tensor_of: Callable[[str], Tensor],
    residual: Residual,
    rotation_DD: Tensor,
) -> dict[str, Callable[[], Tensor]]:
    """Return what makes the tensors that a rotation of the residual stream changes; nothing is
    changed in place.

    Gains become 1. A norm's bias goes into the biases of its readers where all of them have one;
    otherwise it stays at the norm, as R (bias / gain). Computed in float64 and returned in the type
    of each tensor.

    Args:
        module_of: gives a module by its full name.
        tensor_of: gives a parameter by its full name, on any device; asked again, for one or two
            parameters, whenever a new value is made.
        residual: of the model.
        rotation_DD: R, orthogonal.

    Returns:
        Full name of a parameter -> what makes its new value.

    Raises:
        InputError: embeddings and head are tied (:func:`untie` first), or a norm has a bias that
            neither its readers nor itself can take.
        ValueError: R is not orthogonal, has another width, or moves the vector of ones although a
            norm subtracts the mean.
    """
    _check(rotation_DD, residual)
    if getattr(module_of(residual.head), "weight", None) is module_of(residual.embeddings).weight:
        raise InputError(
            f"{residual.embeddings} and {residual.head} share one weight, which a rotation cannot "
            "keep; untie them first (qvlm_lightning.nn.rotation.untie)"
        )
    right = partial(_product, tensor_of, right=rotation_DD.T)
    changed: dict[str, Callable[[], Tensor]] = {}
    for name in (f"{residual.embeddings}.weight", *residual.vectors):
        changed[name] = partial(right, name)
    for writer in residual.writers:
        changed[f"{writer}.weight"] = partial(_writer, tensor_of, f"{writer}.weight", rotation_DD)
        if module_of(writer).bias is not None:
            changed[f"{writer}.bias"] = partial(right, f"{writer}.bias")
    for norm in residual.norms:
        changed |= _norm_rotated(module_of, tensor_of, norm, rotation_DD)
    return changed


def _norm_rotated(
    module_of: Callable[[str], Any],
    tensor_of: Callable[[str], Tensor],
    norm: Source,
    rotation_DD: Tensor,
) -> dict[str, Callable[[], Tensor]]:
    """Return what makes a norm without gain and its readers, in the rotated stream."""
    weight_D = tensor_of(f"{norm.name}.weight")
    gain_D = weight_D.double() + norm.offset
    changed: dict[str, Callable[[], Tensor]] = {
        f"{norm.name}.weight": partial(torch.full_like, weight_D, 1 - norm.offset)
    }
    for reader in norm.readers:
        name = f"{reader}.weight"
        changed[name] = partial(_product, tensor_of, name, rotation_DD.T, gain_D)
    if getattr(module_of(norm.name), "bias", None) is None:
        return changed
    name = f"{norm.name}.bias"
    bias_D = tensor_of(name)
    if all(getattr(module_of(reader), "bias", None) is not None for reader in norm.readers):
        changed[name] = partial(torch.zeros_like, bias_D)
        for reader in norm.readers:
            changed[f"{reader}.bias"] = partial(_with_bias, tensor_of, reader, bias_D)
        return changed
    if bool(((gain_D == 0) & (bias_D != 0)).any()):
        raise InputError(
            f"{norm.name} has a channel with a bias but no gain, and a reader without a bias to "
            "take it over; such a model cannot be rotated"
        )
    inner_D = torch.where(bias_D != 0, bias_D.double() / gain_D, 0)
    changed[name] = partial(_times, inner_D, rotation_DD.T, dtype=bias_D.dtype)
    return changed


def _product(
    tensor_of: Callable[[str], Tensor], name: str, right: Tensor, gain_D: Tensor | None = None
) -> Tensor:
    """Return a reader's matrix, the embeddings, or a vector of the stream, times ``right``."""
    return _times(tensor_of(name), right, gain_D)


def _writer(tensor_of: Callable[[str], Tensor], name: str, rotation_DD: Tensor) -> Tensor:
    """Return R times a writer's weight [D, I]."""
    return _times(tensor_of(name).T, rotation_DD.T).T.contiguous()


def _with_bias(tensor_of: Callable[[str], Tensor], reader: str, bias_D: Tensor) -> Tensor:
    """Return the bias of a reader that takes over that of its norm."""
    weight_OD, bias_O = (tensor_of(f"{reader}.{own}") for own in ("weight", "bias"))
    moved_O = _times(weight_OD, bias_D[:, None].double(), dtype=torch.float64)[:, 0]
    return (bias_O.double() + moved_O).to(bias_O.dtype)


def _times(
    left: Tensor, right: Tensor, gain_D: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``(left * gain) @ right`` of [.., D] and [D, N], computed in float64.

    Args:
        left: a matrix may be large: only a part of its rows is in float64 at a time.
        right: any float type.
        gain_D: one without it.
        dtype: of the result; that of ``left`` without it.
    """
    rows = left.reshape(-1, left.shape[-1])
    matrix = right.to(left.device, torch.float64)
    if gain_D is not None:
        matrix = gain_D.to(matrix)[:, None] * matrix
    result = left.new_empty(len(rows), matrix.shape[1], dtype=dtype or left.dtype)
    for old, new in zip(rows.split(_ROWS), result.split(_ROWS), strict=True):
        new.copy_(old.double() @ matrix)
    return result.reshape(*left.shape[:-1], matrix.shape[1])


def _check(rotation_DD: Tensor, residual: Residual) -> None:
    """Refuse a matrix that is no rotation of the stream."""
    width = residual.width
    if rotation_DD.shape != (width, width):
        raise ValueError(
            f"a rotation of shape {tuple(rotation_DD.shape)}; allowed: ({width}, {width})"
        )
    matrix = rotation_DD.double()
    eye = torch.eye(width, dtype=torch.float64, device=matrix.device)
    if not torch.allclose(matrix @ matrix.T, eye, rtol=0, atol=_TOLERANCE):
        raise ValueError("a rotation is not orthogonal: R times its transpose is not the identity")
    ones = eye.new_ones(width)
    if residual.centred and not torch.allclose(matrix @ ones, ones, rtol=0, atol=_TOLERANCE):
        raise ValueError(
            "the norms of this model subtract the mean; allowed: rotations that leave the vector "
            "of ones where it is (random_rotation(width, seed, keeps_mean=True))"
        )

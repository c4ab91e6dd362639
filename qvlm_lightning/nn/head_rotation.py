"""Rotations of the values of attention heads, merged into the weights around them.

What a head adds up are rows of values, so that ``(A V R) (R^T W_o)`` is ``A V W_o``: a rotation of
every head's values needs no arithmetic at run time (QuaRot, arXiv:2404.00456, section 4, R2). Keys
and queries are left alone: a rotary embedding stands between them and their product.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from qvlm_lightning.models.family import Attention


def heads_rotated(
    module_of: Callable[[str], nn.Module],
    tensor_of: Callable[[str], Tensor],
    layer: str,
    attention: Attention,
    rotation_HH: Tensor,
) -> dict[str, Callable[[], Tensor]]:
    """Return what makes the tensors that a rotation of all heads' values changes; nothing is
    changed in place.

    With grouped queries, query heads read the values of their group's head, which all are rotated
    alike. Computed in float64 and returned in the type of each tensor.

    Args:
        module_of: gives a module by its full name.
        tensor_of: gives a parameter by its full name; asked whenever a new value is made.
        layer: full name of the layer that holds the attention.
        attention: of the layer.
        rotation_HH: orthogonal, [head_dim, head_dim].

    Returns:
        Full name of a parameter -> what makes its new value.
    """
    changed: dict[str, Callable[[], Tensor]] = {}
    value = f"{layer}.{attention.v.name}"
    for own in ("weight", "bias"):
        if getattr(module_of(value), own, None) is not None:
            name = f"{value}.{own}"
            changed[name] = partial(_values, tensor_of, name, attention, rotation_HH)
    name = f"{layer}.{attention.o}.weight"
    changed[name] = partial(_outputs, tensor_of, name, attention, rotation_HH)
    return changed


def _values(
    tensor_of: Callable[[str], Tensor], name: str, attention: Attention, rotation_HH: Tensor
) -> Tensor:
    """Return weight or bias of the values' projection; its other rows stay."""
    old, size = tensor_of(name), attention.head_dim
    first, end = attention.v.rows or (0, attention.kv_heads * size)
    turn = rotation_HH.to(old.device, torch.float64)
    heads = old[first:end].double().reshape(attention.kv_heads, size, -1)
    part = (turn.T @ heads).reshape(end - first, *old.shape[1:]).to(old.dtype)
    return torch.cat([old[:first], part, old[end:]])


def _outputs(
    tensor_of: Callable[[str], Tensor], name: str, attention: Attention, rotation_HH: Tensor
) -> Tensor:
    """Return the weight of the layer that reads what the heads add up."""
    old = tensor_of(name)
    heads = old.double().reshape(len(old), attention.heads, attention.head_dim)
    turned = heads @ rotation_HH.to(old.device, torch.float64)
    return turned.reshape(old.shape).to(old.dtype)

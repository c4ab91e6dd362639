"""Rotations of the values of attention heads, merged into the weights around them.

What a head adds up are rows of values, so that ``(A V R) (R^T W_o)`` is ``A V W_o``: a rotation of
every head's values needs no arithmetic at run time (QuaRot, arXiv:2404.00456, section 4, R2). Keys
and queries are left alone: a rotary embedding stands between them and their product.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qvlm_lightning.models.family import Attention


def heads_rotated(
    module_of: Callable[[str], nn.Module],
    tensor_of: Callable[[str], Tensor],
    layer: str,
    attention: Attention,
    rotation_HH: Tensor,
) -> dict[str, Tensor]:
    """Return the tensors that a rotation of all heads' values changes; nothing is changed in place.

    With grouped queries, query heads read the values of their group's head, which all are rotated
    alike. Computed in float64 and returned in the type of each tensor.

    Args:
        module_of: gives a module by its full name.
        tensor_of: gives a parameter by its full name.
        layer: full name of the layer that holds the attention.
        attention: of the layer.
        rotation_HH: orthogonal, [head_dim, head_dim].

    Returns:
        Full name of a parameter -> its new value.
    """
    size = attention.head_dim
    changed: dict[str, Tensor] = {}
    value = f"{layer}.{attention.v.name}"
    first, end = attention.v.rows or (0, attention.kv_heads * size)
    for own in ("weight", "bias"):
        if getattr(module_of(value), own, None) is not None:
            old = tensor_of(f"{value}.{own}")
            turn = rotation_HH.to(old.device, torch.float64)
            heads = old[first:end].double().reshape(attention.kv_heads, size, -1)
            part = (turn.T @ heads).reshape(end - first, *old.shape[1:]).to(old.dtype)
            changed[f"{value}.{own}"] = torch.cat([old[:first], part, old[end:]])
    name = f"{layer}.{attention.o}.weight"
    old = tensor_of(name)
    heads = old.double().reshape(len(old), attention.heads, size)
    changed[name] = (
        (heads @ rotation_HH.to(old.device, torch.float64)).reshape(old.shape).to(old.dtype)
    )
    return changed

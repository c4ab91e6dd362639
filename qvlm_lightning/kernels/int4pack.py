"""torch's product of bfloat16 rows with codes of 4 bits (``_weight_int4pack_mm_for_cpu``).

Of codes of 4 bits as inputs it is exact up to the type of its result: small whole numbers are
bfloat16 numbers. Codes of 2 and 3 bits take the room of 4.

Shapes: N rows (tokens), I inputs, O outputs, G groups.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.kernels.torch_kernels import floating_product, multiplied_in
from qvlm_lightning.nn.packed_input import InputCodes
from qvlm_lightning.nn.packed_linear import Given, PackedLinear
from qvlm_lightning.nn.packing import PackedWeight

_ROWS = 64  # outputs that lie together; fewer have another order
_GROUPS = (256, 128, 64, 32)


def group_of(group_size: int) -> int | None:
    """Return the group size in which torch multiplies: the largest it knows that divides."""
    return next((size for size in _GROUPS if group_size % size == 0), None)


def fits(features: tuple[int, int], group_size: int) -> bool:
    """Return whether a weight of (O, I) can be held."""
    return features[0] % _ROWS == 0 and group_of(group_size) is not None


def held(weight: PackedWeight) -> dict[str, Tensor]:
    """Return what a layer holds in the ``int4`` layout."""
    size = group_of(weight.group_size)
    assert size is not None
    assert weight.bits <= 4
    codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.levels().to(torch.int32), 1)
    scale = weight.scale.to(torch.float32)
    # torch reads code 8 as 0; what is missing is added by it, where bfloat16 holds it exactly
    added = (8 - weight.zeros().to(torch.float32)) * scale
    exact = weight.zero_point is None
    both = torch.stack([scale, added if exact else torch.zeros_like(scale)], dim=-1)
    both = both.repeat_interleave(weight.group_size // size, dim=1).transpose(0, 1)
    tensors = {"codes": codes, "scale_and_zero": both.to(torch.bfloat16).contiguous()}
    return tensors if exact else tensors | {"added": added.t().contiguous()}


def product(layer: PackedLinear, given: Given) -> Tensor:
    """Return the product, of rows or of input codes, in bfloat16 or float32."""
    own: Any = layer
    x = given.steps(torch.bfloat16) if isinstance(given, InputCodes) else given.to(torch.bfloat16)
    size = layer.in_features // len(own.scale_and_zero)
    y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        x.contiguous(), own.codes, size, own.scale_and_zero
    )
    added: Tensor | None = getattr(layer, "added", None)  # [G, O]
    if added is not None:
        sums_NG = x.to(torch.float32).reshape(len(x), len(added), -1).sum(dim=-1)
        y = torch.addmm(y.to(torch.float32), sums_NG, added)
    return y.to(torch.float32) * given.scale if isinstance(given, InputCodes) else y


def dequantized_product(layer: PackedLinear, given: Given) -> Tensor:
    """Return the product with the dequantized weight, for many rows."""
    own: Any = layer
    rows = len(given.codes) if isinstance(given, InputCodes) else len(given)
    kind = multiplied_in(layer.dtype, rows, own.codes.device)
    both = own.scale_and_zero.to(torch.float32).transpose(0, 1)[..., None]  # [O, G, 2, 1]
    grouped = levels(layer).to(torch.float32).reshape(layer.out_features, both.shape[1], -1)
    weight = (grouped - 8).mul_(both[:, :, 0]).add_(both[:, :, 1]).reshape(layer.out_features, -1)
    added: Tensor | None = getattr(layer, "added", None)
    if added is not None:
        weight += added.t().repeat_interleave(layer.in_features // len(added), dim=1)
    return floating_product(given, weight.to(kind))


def levels(layer: PackedLinear) -> Tensor:
    """Return the codes, uint8 [O, I], of a layer in the ``int4`` layout."""
    own: Any = layer
    places = _places()
    blocks = own.codes.reshape(-1, len(places) // 2)
    nibbles = torch.stack([blocks & 15, blocks >> 4], dim=-1).reshape(-1, len(places))
    ordered = nibbles[:, places.argsort()]  # [blocks of outputs times I, outputs of a block]
    size = layer.out_features // len(places)
    by_input = ordered.reshape(size, layer.in_features, len(places))
    return by_input.transpose(1, 2).reshape(layer.out_features, layer.in_features)


@cache
def _places() -> Tensor:
    """Return which output of a block every half byte belongs to; asked of torch, whose order
    depends on the processor.
    """
    outputs = torch.arange(_ROWS, dtype=torch.int32)[:, None].expand(_ROWS, 32)
    digits = [
        torch.ops.aten._convert_weight_to_int4pack_for_cpu(part.contiguous(), 1)
        for part in (outputs % 16, outputs // 16)
    ]
    low, high = (torch.stack([x & 15, x >> 4], dim=-1).flatten().int() for x in digits)
    found = low + 16 * high
    size = _ROWS if set(found[:_ROWS].tolist()) == set(range(_ROWS)) else _ROWS // 2
    return found[:size].long()

"""Kernels of plain torch, and the reference in float64 that all others are compared with.

Shapes: N rows (tokens), I inputs, O outputs, G groups.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qvlm_lightning.kernels import triton_kernels
from qvlm_lightning.kernels.extension import extension
from qvlm_lightning.nn.packed_input import InputCodes
from qvlm_lightning.nn.packed_linear import Given, PackedLinear
from qvlm_lightning.nn.packing import PackedWeight

WRITTEN_AT_ONCE = 2**20
"""Numbers of a weight that a CPU writes out at once, 4 MiB: they stay in its caches until they are
multiplied, and memory of the system, which costs as much as the product, is not asked for."""


def packed_of(layer: PackedLinear) -> PackedWeight:
    """Return the weight of a layer in the ``dense`` layout."""
    features = (layer.out_features, layer.in_features)
    return PackedWeight(layer.codes, layer.scale, layer.zero_point, layer.bits, features)


def reference(layer: PackedLinear, given: Given) -> Tensor:
    """Return the product as float64 sums of whole numbers per group: exact up to 2^53."""
    weight = packed_of(layer)
    grouped = weight.levels().double().reshape(*weight.scale.shape, -1)
    steps_OGJ = grouped - weight.zeros().double()[..., None]
    x = given.steps(torch.float64) if isinstance(given, InputCodes) else given.double()
    x_NGJ = x.reshape(len(x), layer.groups, -1)
    products = torch.einsum("ngj,ogj->nog", x_NGJ, steps_OGJ)
    y = (products * weight.scale.double()).sum(dim=-1)
    return y * given.scale.double() if isinstance(given, InputCodes) else y


def dequantize(layer: PackedLinear, given: Given) -> Tensor:
    """Return ``x W^T`` of the dequantized weight, a part of which exists while it is multiplied.

    Of an input in codes the whole numbers are multiplied, and their scale comes last.
    """
    rows = len(given.codes) if isinstance(given, InputCodes) else len(given)
    kind = multiplied_in(layer.dtype, rows, layer.codes.device)
    x = given.steps(kind) if isinstance(given, InputCodes) else given.to(kind)
    if layer.codes.device.type == "cpu":
        y = in_parts(layer, x)
    else:
        y = F.linear(x, dequantized(layer, kind))
    return y.to(torch.float32) * given.scale if isinstance(given, InputCodes) else y


def in_parts(layer: PackedLinear, x: Tensor) -> Tensor:
    """Return the product [N, O] with a weight of which some outputs are written out at a time.

    Args:
        layer: in the ``dense`` layout.
        x: [N, I], in the type that is multiplied in.
    """
    weight = packed_of(layer)
    outputs, inputs = weight.features
    step = max(8, WRITTEN_AT_ONCE // inputs // 8 * 8)
    parts = [
        F.linear(x, dequantized_part(weight.outputs(first, min(first + step, outputs)), x.dtype))
        for first in range(0, outputs, step)
    ]
    return torch.cat(parts, dim=1)


def floating_product(given: Given, weight: Tensor) -> Tensor:
    """Return the product with a weight [O, I], in its type."""
    if isinstance(given, InputCodes):
        y = F.linear(given.steps(weight.dtype), weight)
        return y.to(torch.float32) * given.scale
    return F.linear(given.to(weight.dtype), weight)


def dequantized(layer: PackedLinear, dtype: torch.dtype) -> Tensor:
    """Return the weight [O, I] of a layer in the ``dense`` layout."""
    made = triton_kernels.dequantized(layer, dtype)
    return dequantized_part(packed_of(layer), dtype) if made is None else made


def dequantized_part(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return a weight [O, I] written out."""
    built = extension() if weight.codes.device.type == "cpu" else None
    return weight.dequantized(dtype) if built is None else built.dequantized(weight).to(dtype)


def multiplied_in(dtype: torch.dtype, rows: int, device: torch.device) -> torch.dtype:
    """Return the type in which a floating product is computed: that of the model, except where a
    CPU has no instructions for it and many rows would take many times as long.

    Args:
        dtype: of the model.
        rows: of the input.
        device: of the weight.
    """
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16) or rows == 1:
        return dtype
    slow = dtype == torch.float16 or not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if slow else dtype


def signed_codes(weight: PackedWeight) -> Tensor:
    """Return the codes minus 2^(b-1), int8 [O, I]."""
    built = extension() if weight.codes.device.type == "cpu" else None
    if built is not None:
        return built.signed(weight)
    return (weight.levels() - 2 ** (weight.bits - 1)).view(torch.int8)


def signed_zeros(weight: PackedWeight) -> Tensor | None:
    """Return zero points minus 2^(b-1), float32 [O, G]; ``None`` where all are 0."""
    if weight.zero_point is None:
        return None
    return weight.zeros().to(torch.float32) - 2 ** (weight.bits - 1)


def integer_product(layer: PackedLinear, given: Given) -> Tensor:
    """Return the product by ``torch._int_mm``: int8 codes, int32 sums per group, scales last."""
    assert isinstance(given, InputCodes)
    packed = packed_of(layer)
    weight, zeros = signed_codes(packed), signed_zeros(packed)
    scale = layer.scale.to(torch.float32)
    # int8 cannot hold codes minus zero point: both are taken from 128, what that leaves is added
    codes = (given.codes ^ 128).view(torch.int8)
    shift = given.zero_point - 128
    size = layer.in_features // layer.groups
    total: Tensor | None = None
    for group in range(layer.groups):
        part = slice(group * size, (group + 1) * size)
        a, w = codes[:, part].contiguous(), weight[:, part]
        sums = torch._int_mm(a, w.t()) - shift * w.sum(dim=1, dtype=torch.int32)
        if zeros is not None:
            rows = a.sum(dim=1, dtype=torch.int32) - shift * size
            sums = sums - rows[:, None] * zeros[:, group].to(torch.int32)
        scaled = sums.to(torch.float32) * scale[:, group]
        total = scaled if total is None else total + scaled
    assert total is not None
    return total * given.scale


def many_rows(layer: PackedLinear, given: Given) -> Tensor:
    """Return the product of the extension with the instructions of AVX-512 VNNI."""
    built = extension()
    assert built is not None
    assert isinstance(given, InputCodes)
    return built.byte_product(packed_of(layer), given)


def few_rows(layer: PackedLinear, given: Given) -> Tensor:
    """Return the product of the extension, which reads every code once for up to four rows."""
    return few_rows_together([packed_of(layer)], given)[0]


def few_rows_together(weights: Sequence[PackedWeight], given: Given) -> list[Tensor]:
    """Return the products of the extension with every weight, which share the work on the input."""
    built = extension()
    assert built is not None
    return built.products(weights, given)

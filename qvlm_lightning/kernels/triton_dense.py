"""Triton programs that read the ``dense`` layout on a GPU: any width from 2 to 8 bits.

Code i of an output channel takes bits i b to (i + 1) b - 1 of its row, so that a code lies in one
byte or in two that follow each other.

Shapes: N rows (tokens), I inputs, O outputs, G groups of inputs, P bytes of a packed row.
"""

import subprocess
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

OUTPUTS_OF_A_PROGRAM, INPUTS_OF_A_STEP = 16, 128


@triton.jit
def _code(row, place, bytes_of_row, keep, BITS: tl.constexpr):
    """Return the codes number ``place`` of packed rows, as whole numbers."""
    bit = place * BITS
    first = bit >> 3
    word = tl.load(row + first, mask=keep, other=0).to(tl.int32)
    if BITS != 2 and BITS != 4 and BITS != 8:  # such widths never cross the end of a byte
        more = keep & (first + 1 < bytes_of_row)
        word |= tl.load(row + first + 1, mask=more, other=0).to(tl.int32) << 8
    return (word >> (bit & 7)) & ((1 << BITS) - 1)


@triton.jit
def _zeros(zeros, place, bytes_of_zeros, keep, HAS_ZEROS: tl.constexpr, BITS: tl.constexpr):
    """Return the zero points number ``place``; 2^(b-1) where codes are symmetric."""
    if HAS_ZEROS:
        return _code(zeros, place, bytes_of_zeros, keep, BITS).to(tl.float32)
    return tl.zeros_like(place).to(tl.float32) + (1 << (BITS - 1))


@triton.jit
def _product(
    x, codes, scale, zeros, out, OUTPUTS, INPUTS, P, G, Z,
    HAS_ZEROS: tl.constexpr, BITS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_O outputs of one row: sums of a group in float32, scaled when it is complete."""
    outputs = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    row = tl.program_id(1)
    there = outputs < OUTPUTS
    size = INPUTS // G
    total = tl.zeros((BLOCK_O,), tl.float32)
    for group in range(0, G):
        zero = _zeros(zeros, outputs * G + group, Z, there, HAS_ZEROS, BITS)
        sums = tl.zeros((BLOCK_O,), tl.float32)
        for start in range(0, size, BLOCK_I):
            within = start + tl.arange(0, BLOCK_I)
            place = group * size + within
            mine = within < size
            values = tl.load(x + row * INPUTS + place, mask=mine, other=0.0)
            keep = there[:, None] & mine[None, :]
            rows = codes + outputs.to(tl.int64)[:, None] * P
            code = _code(rows, place[None, :], P, keep, BITS).to(tl.float32)
            sums += tl.sum((code - zero[:, None]) * values[None, :], axis=1)
        total += sums * tl.load(scale + outputs * G + group, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * OUTPUTS + outputs, total, mask=there)


@triton.jit
def _dequantize(
    codes, scale, zeros, out, OUTPUTS, INPUTS, P, G, Z,
    HAS_ZEROS: tl.constexpr, BITS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write a tile of the weight [O, I]."""
    outputs = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    place = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    keep = (outputs < OUTPUTS)[:, None] & (place < INPUTS)[None, :]
    rows = codes + outputs.to(tl.int64)[:, None] * P
    code = _code(rows, place[None, :], P, keep, BITS).to(tl.float32)
    group = outputs[:, None] * G + (place // (INPUTS // G))[None, :]
    zero = _zeros(zeros, group, Z, keep, HAS_ZEROS, BITS)
    value = (code - zero) * tl.load(scale + group, mask=keep, other=0.0).to(tl.float32)
    where = outputs.to(tl.int64)[:, None] * INPUTS + place[None, :]
    tl.store(out + where, value.to(out.dtype.element_ty), mask=keep)


def product(layer: Any, x: Tensor) -> Tensor:
    """Return ``x W^T`` [N, O] float32 of rows [N, I], read from the codes of a packed layer.

    Args:
        layer: in the ``dense`` layout.
        x: in full precision, or whole numbers of input codes.
    """
    x = x.to(torch.float32).contiguous()
    out = torch.empty(len(x), layer.out_features, device=x.device)
    step = min(INPUTS_OF_A_STEP, triton.next_power_of_2(layer.in_features // layer.groups))
    grid = (triton.cdiv(layer.out_features, OUTPUTS_OF_A_PROGRAM), len(x))
    with _on(x.device):
        _product[grid](x, *_weight(layer, out), BLOCK_O=OUTPUTS_OF_A_PROGRAM, BLOCK_I=step)
    return out


def dequantized(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return the weight [O, I] of a packed layer in the ``dense`` layout.

    Args:
        layer: the layer.
        dtype: of the result.
    """
    features = layer.out_features, layer.in_features
    out = torch.empty(features, dtype=dtype, device=layer.codes.device)
    tile = OUTPUTS_OF_A_PROGRAM, INPUTS_OF_A_STEP
    grid = tuple(triton.cdiv(size, of) for size, of in zip(features, tile, strict=True))
    with _on(out.device):
        _dequantize[grid](*_weight(layer, out), BLOCK_O=tile[0], BLOCK_I=tile[1])
    return out


def runs() -> bool:
    """Say whether a program compiles and runs on the GPU."""
    codes = torch.zeros(1, 4, dtype=torch.uint8, device="cuda")
    scale = torch.ones(1, 1, device="cuda")
    sizes = {"out_features": 1, "in_features": 8, "groups": 1, "bits": 4}
    layer = SimpleNamespace(codes=codes, scale=scale, zero_point=None, **sizes)
    try:
        return bool((dequantized(layer, torch.float32) == -8).all())
    except (TritonError, subprocess.SubprocessError, OSError, RuntimeError):
        return False


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which programs start on a device; Triton takes the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _weight(layer: Any, out: Tensor) -> list[Any]:
    """Return the arguments that both programs have after their input."""
    zeros = layer.codes if layer.zero_point is None else layer.zero_point
    return [
        *(layer.codes, layer.scale, zeros, out),
        *(layer.out_features, layer.in_features, layer.codes.shape[1], layer.groups, len(zeros)),
        *(layer.zero_point is not None, layer.bits),
    ]

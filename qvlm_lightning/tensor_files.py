"""Safetensors files, written tensor by tensor in the layout that safetensors itself would choose.

Its own writer is not used: files of mode 0600, written through no call that reports a full disk as
what it is.
"""

import json
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.files import create, writing

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Name of a type in a file -> the type."""

LENGTH = struct.Struct("<Q")
"""A file begins with the length of its header."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = ["BOOL", "U8", "I8", "I16", "F16", "BF16", "I32", "F32", "F64", "I64"]
_PLAIN = {"format": "pt"}


def write_shard(
    path: Path,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = _PLAIN,
) -> None:
    """Write a safetensors file with one tensor in memory at a time, in the order that safetensors
    itself would choose.

    Args:
        path: the file; for one that must appear as a whole see :func:`write_tensors`.
        tensors: name -> (type, shape).
        read: gives the tensor of a name, of that type and shape.
        metadata: strings by name.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    widest_first = sorted(tensors, key=lambda n: (-_ORDER.index(_NAMES[tensors[n][0]]), n))
    for name in widest_first:
        dtype, shape = tensors[name]
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with create(path) as file:
        file.write(LENGTH.pack(len(text)) + text)
        for name in widest_first:
            value = read(name).detach().to("cpu").contiguous()
            assert (value.dtype, tuple(value.shape)) == tensors[name], name
            file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def put_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = _PLAIN
) -> None:
    """Write tensors that are in memory with :func:`write_shard`."""
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    write_shard(path, shapes, tensors.__getitem__, metadata)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = _PLAIN
) -> None:
    """Write tensors so that readers see the old file or the whole new one.

    Raises:
        InputError: the system refuses; the file is what it was.
    """
    with writing(path) as scratch:
        put_tensors(scratch, tensors, metadata)

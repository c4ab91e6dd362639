"""Single tensors of safetensors files, read without the rest of their file.

Plain reads into fresh memory: of a mapped file every page that was ever touched would count as this
process's memory until the file is closed.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.tensor_files import DTYPES, LENGTH

Place = tuple[Path, str]


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        file: the safetensors file.
        start: its first byte there.
        dtype: its type.
        shape: its shape.
    """

    file: Path
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return prod(self.shape) * self.dtype.itemsize


class Shards:
    """Tensors by name, in any number of safetensors files; nothing is kept open or in memory.

    Args:
        places: name -> (file, key in it).

    Raises:
        InputError: a file is missing, broken or cut short, or lacks a key.
    """

    def __init__(self, places: Mapping[str, Place]) -> None:
        headers = {file: _header(file) for file in sorted({file for file, _ in places.values()})}
        self.entries: dict[str, Entry] = {}
        for name, (file, key) in places.items():
            if key not in headers[file]:
                raise InputError(f"{str(file)!r} holds no tensor {key}")
            self.entries[name] = headers[file][key]

    @classmethod
    def of_file(cls, path: Path) -> "Shards":
        """Return all tensors of a file under their own names.

        Raises:
            InputError: see the class.
        """
        shards = cls({})
        shards.entries = _header(path)
        return shards

    def read(self, name: str) -> Tensor:
        """Return a tensor, in memory of its own."""
        entry = self.entries[name]
        raw = torch.empty(entry.nbytes, dtype=torch.uint8)
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.start)
            _fill(file, memoryview(raw.numpy()), entry.file)  # type: ignore[arg-type]
        return raw.view(entry.dtype).reshape(entry.shape)

    def sample(self, name: str, stride: int) -> Tensor:
        """Return every ``stride``-th element of a flattened tensor."""
        entry, size = self.entries[name], self.entries[name].dtype.itemsize
        picked = range(0, prod(entry.shape), stride)
        raw = torch.empty(len(picked) * size, dtype=torch.uint8)
        view = memoryview(raw.numpy())  # type: ignore[arg-type]
        with entry.file.open("rb", buffering=0) as file:
            for count, index in enumerate(picked):
                file.seek(entry.start + index * size)
                _fill(file, view[count * size : (count + 1) * size], entry.file)
        return raw.view(entry.dtype)


def _header(path: Path) -> dict[str, Entry]:
    """Return what a file says it holds, after checking that it can."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = LENGTH.unpack(file.read(LENGTH.size))
            if length > size:
                raise ValueError("its header is longer than the file")
            values = parse_json(file.read(length))
        begin = LENGTH.size + length
        found = {
            key: Entry(
                path,
                begin + value["data_offsets"][0],
                DTYPES[value["dtype"]],
                tuple(value["shape"]),
            )
            for key, value in values.items()
            if key != "__metadata__"
        }
    except KeyError as error:
        raise InputError(f"{str(path)!r} holds tensors of type {error}, not read here") from error
    except (OSError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"{str(path)!r} is no usable safetensors file: {error}") from error
    if any(entry.start + entry.nbytes > size for entry in found.values()):
        raise InputError(f"{str(path)!r} is no usable safetensors file: it is cut short")
    return found


def _fill(file: Any, view: memoryview, path: Path) -> None:
    """Read until ``view`` is full; one read may return less than it is asked for."""
    while len(view):
        count = file.readinto(view)
        if not count:
            raise InputError(f"{str(path)!r} ended while it was read")
        view = view[count:]

"""Weights in one safetensors file or several with an index, written tensor by tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from qvlm_lightning.files import write_json
from qvlm_lightning.tensor_files import write_shard


@dataclass(frozen=True)
class Planned:
    """A tensor that does not exist yet.

    Attributes:
        dtype: its type.
        shape: its shape.
        make: makes it, of that type and shape.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return prod(self.shape) * self.dtype.itemsize


def write_shards(folder: Path, tensors: Mapping[str, Planned], most: int) -> None:
    """Write ``model.safetensors``, or numbered files and their index, as transformers names them.

    Args:
        folder: an existing folder.
        tensors: by name; one at a time is in memory.
        most: bytes of a file, unless one tensor is larger.
    """
    parts = split(tensors, most)
    places: dict[str, str] = {}
    for number, names in enumerate(parts, 1):
        file = "model.safetensors"
        if len(parts) > 1:
            file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        kinds = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
        write_shard(folder / file, kinds, lambda name: tensors[name].make())
        places |= dict.fromkeys(names, file)
    if len(parts) > 1:
        total = sum(planned.nbytes for planned in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / "model.safetensors.index.json", index)


def split(tensors: Mapping[str, Planned], most: int) -> list[list[str]]:
    """Return the names of each file, in order.

    Example:
        >>> one = Planned(torch.int8, (4,), lambda: torch.zeros(4, dtype=torch.int8))
        >>> split({"a": one, "b": one, "c": one}, 8)
        [['a', 'b'], ['c']]
    """
    parts: list[list[str]] = []
    room = 0
    for name, planned in tensors.items():
        if not parts or planned.nbytes > room:
            parts.append([])
            room = most
        parts[-1].append(name)
        room -= planned.nbytes
    return parts

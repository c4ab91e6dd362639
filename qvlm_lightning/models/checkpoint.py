"""Weights of a folder read and written one at a time: no model is ever held as a whole."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError, first_line, parse_json
from qvlm_lightning.files import write_json
from qvlm_lightning.tensor_files import put_tensors

SHARD_BYTES = 2 * 1024**3
_FORMS = (
    ("model.safetensors.index.json", "model*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
)


class WeightReader:
    """The weights of a folder: safetensors or ``pytorch_model.bin``, in one file or in shards.

    ``.bin`` files are mapped into memory, not read, and load nothing but tensors.

    Args:
        folder: with ``model*.safetensors`` or ``pytorch_model*.bin``.

    Raises:
        InputError: there are no weights, a shard that the index names is missing, or a file is
            broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = self._find()
        self.place: dict[str, Path] = {}
        for file in self.files:
            with _Opened(file) as opened:
                self.place |= dict.fromkeys(opened.names(), file)

    def _find(self) -> list[Path]:
        for index, pattern in _FORMS:
            files = sorted(self.folder.glob(pattern))
            if (self.folder / index).is_file():
                return self._indexed(self.folder / index)
            if files:
                return files
        raise InputError(
            f"{str(self.folder)!r} holds no weights; needed are model*.safetensors or "
            "pytorch_model*.bin"
        )

    @staticmethod
    def _indexed(index: Path) -> list[Path]:
        try:
            names = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{str(index)!r} is no index of weights") from error
        for name in sorted(names):
            if not isinstance(name, str) or Path(name).name != name:
                raise InputError(
                    f"{str(index)!r} names the shard {str(name)[:80]!r}; allowed are files of its "
                    "own folder"
                )
            if not (index.parent / name).is_file():
                raise InputError(
                    f"{str(index.parent)!r} lacks the shard {name!r} that its index names"
                )
        return [index.parent / name for name in sorted(names)]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor), file by file; only one file is open at a time."""
        for file in self.files:
            with _Opened(file) as opened:
                for name in opened.names():
                    if self.place[name] == file:
                        yield name, opened.read(name)


class _Opened:
    """One file of weights, open."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._tensors: Any = None
        self._safe: Any = None

    def __enter__(self) -> Self:
        from safetensors import SafetensorError, safe_open

        try:
            if self.file.suffix == ".safetensors":
                self._safe = safe_open(self.file, framework="pt").__enter__()
            else:
                self._tensors = _load_bin(self.file)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = first_line(error)
            raise InputError(f"{str(self.file)!r} cannot be read: {reason}") from error
        return self

    def __exit__(self, *error: object) -> None:
        if self._safe is not None:
            self._safe.__exit__(*error)
        self._tensors = self._safe = None

    def names(self) -> list[str]:
        """Return the names of its tensors."""
        return list(self._tensors if self._safe is None else self._safe.keys())

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        found: Tensor = self._tensors[name] if self._safe is None else self._safe.get_tensor(name)
        return found


def _load_bin(file: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        # written before torch 1.6: no zip archive, nothing to map
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}


class WeightWriter:
    """Writes safetensors shards and their index; holds at most one shard.

    Args:
        folder: an existing folder.
        shard_bytes: a shard is written as soon as it is this large.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.total = 0
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in one tensor; it is copied, so that the file it came from may be closed."""
        self._held[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._held_bytes += tensor.nbytes
        self.total += tensor.nbytes
        if self._held_bytes >= self.shard_bytes:
            self._write()

    def _write(self) -> None:
        put_tensors(self._part(len(self._shards)), self._held)
        self._shards.append(list(self._held))
        self._held, self._held_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.part"

    def close(self) -> None:
        """Write what is left and the index, under the names that transformers expects."""
        if self._held:
            self._write()
        count = len(self._shards)
        if count == 1:
            self._part(0).replace(self.folder / "model.safetensors")
            return
        where: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._part(number).replace(self.folder / file)
            where |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(where.items()))}
        write_json(self.folder / "model.safetensors.index.json", index)

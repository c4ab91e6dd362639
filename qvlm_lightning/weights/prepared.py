"""Weights of a streamed model that a method changed before anything was measured.

Each is made from what the model's files hold whenever it is read. Until a run has ended they also
lie in a file of their own, so that a rotation is multiplied once and not in every sweep.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.files import storage_faults, writing
from qvlm_lightning.nn.changes import as_stored
from qvlm_lightning.nn.parameters import Make, Parameters, TensorOf
from qvlm_lightning.progress import Progress
from qvlm_lightning.tensor_files import write_shard
from qvlm_lightning.weights.shards import Shards
from qvlm_lightning.weights.streamed import StreamedWeights

_FORMAT = 1
"""Of the file: counts the changes of what it holds."""


class StreamedParameters(Parameters):
    """Parameters of a model without weights: new values are made when somebody reads them.

    Args:
        model: with quantized layers.
        stored: see :class:`Parameters`.
        weights: of the model.
    """

    def __init__(self, model: nn.Module, stored: dict[str, Any], weights: StreamedWeights) -> None:
        super().__init__(model, stored)
        self.weights = weights

    def tensors(self) -> TensorOf:
        """Return what reads a parameter, as all parameters are now; later changes do not reach
        it.
        """
        return partial(_made_or_read, dict(self.weights.makers), self.weights)

    def replace(self, makers: Mapping[str, Make]) -> None:
        """Let parameters be made (see :meth:`Parameters.replace`)."""
        self.weights.replace({n: partial(self._rounded, n, make) for n, make in makers.items()})

    def _rounded(self, name: str, make: Make) -> Tensor:
        return as_stored({name: make()}, self.stored)[name]


def _made_or_read(makers: Mapping[str, Make], weights: StreamedWeights, name: str) -> Tensor:
    return makers[name]() if name in makers else weights.from_files(name)


class PreparedFile:
    """A file of all weights that a method changed before anything was measured.

    Args:
        path: of the file.
        weights: of the model, after :meth:`Method.prepare`.
        stored: types by name of weights that are stored in a narrower type than the model's.
        identity: plain values that the weights depend on: a file of others is not used.
    """

    def __init__(
        self, path: Path, weights: StreamedWeights, stored: Mapping[str, torch.dtype], identity: Any
    ) -> None:
        self.path, self.weights = path, weights
        self.kinds = {
            name: (stored.get(name, weights.dtypes[name]), weights.shards.entries[name].shape)
            for name in weights.makers
        }
        plain = [_FORMAT, identity, {n: [str(t), list(s)] for n, (t, s) in self.kinds.items()}]
        self.key = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(prod(shape) * kind.itemsize for kind, shape in self.kinds.values())

    def check_space(self) -> None:
        """Refuse a disk without room for the file, unless it lies there already. What an earlier
        run left in its place is written over and counts as room.

        Raises:
            InputError: says how much is needed, how much is free, and what to do.
        """
        folder = next(p for p in self.path.absolute().parents if p.exists())
        left = (self.path, self.path.with_name(f".{self.path.name}.part"))
        free = shutil.disk_usage(folder).free + sum(x.stat().st_size for x in left if x.is_file())
        if self.nbytes > free and not self.is_whole():
            needed, there = (f"{nbytes / 2**30:.2f} GiB" for nbytes in (self.nbytes, free))
            raise InputError(
                f"the rotated weights of a streamed model take {needed} of disk until the run "
                f"ends, and {str(folder)!r} has {there}; choose another run folder, or a method "
                "that does not rotate, such as gptq"
            )

    def is_whole(self) -> bool:
        """Return whether the file is there and holds these weights, as a run before left it."""
        try:
            with safe_open(self.path, framework="pt") as stored:
                return (stored.metadata() or {}).get("key") == self.key
        except (SafetensorError, OSError):
            return False

    def write(self, progress: Progress | None = None) -> None:
        """Write the file with one tensor in memory at a time; nothing where it is whole.

        Args:
            progress: told after every tensor.

        Raises:
            InputError: the system refuses.
        """
        if self.is_whole():
            return
        done = 0

        def read(name: str) -> Tensor:
            nonlocal done
            made = self.weights.read(name).to(self.kinds[name][0])
            done += 1
            if progress:
                progress("rotating", done, len(self.kinds))
            return made

        self.remove()  # of another run
        with writing(self.path) as scratch:
            write_shard(scratch, self.kinds, read, {"key": self.key})

    def open(self) -> None:
        """Let the weights be read from the file."""
        self.weights.ready = Shards.of_file(self.path)

    def close(self) -> None:
        """Let the weights be made again when they are read."""
        self.weights.ready = None

    def remove(self) -> None:
        """Remove the file, which nobody reads any more."""
        with storage_faults(self.path.parent):
            self.path.unlink(missing_ok=True)

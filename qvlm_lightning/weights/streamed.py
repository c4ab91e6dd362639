"""Weights of a model without any, put in place for as long as they are needed."""

import ctypes
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.finite import check_finite
from qvlm_lightning.nn.changes import Changes
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.weights.shards import Entry, Shards

_GLIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
_M_MMAP_THRESHOLD = -3  # of malloc.h
_OWN_PAGES = 4 * 2**20


class StreamedWeights:
    """Parameters that lie in files until somebody needs them.

    Args:
        model: its parameters are on the meta device, except those that stay in place; its buffers
            are not, and those that the files hold are filled at once.
        shards: hold every parameter on the meta device by its name in ``model``.
        device: where parameters come to lie.
        kept: whether parameters stay in RAM once they have been read. For a device with memory of
            its own: there they are page-locked, and a copy takes a tenth of a read.

    Attributes:
        changes: what methods have decided, which lies over all else.
        makers: name -> what makes a parameter that a method changed before anything was measured.
        ready: holds them, once somebody has made them all.

    Raises:
        InputError: the files lack a parameter, or hold one of another shape.
    """

    def __init__(
        self, model: nn.Module, shards: Shards, device: torch.device, kept: bool = False
    ) -> None:
        _keep_tensors_off_the_heap()
        self.model, self.shards, self.device = model, shards, device
        self._kept: dict[str, Tensor] | None = {} if kept else None
        self._checked: set[str] = set()
        self.changes = Changes()
        self.makers: dict[str, Callable[[], Tensor]] = {}
        self.ready: Shards | None = None
        named = dict(model.named_parameters(remove_duplicate=False))
        self.dtypes = {name: p.dtype for name, p in named.items() if p.is_meta}
        for name, value in model.state_dict().items():
            entry = shards.entries.get(name)
            if entry is None and not value.is_meta:
                continue
            if entry is None or entry.shape != tuple(value.shape):
                found = "is missing" if entry is None else f"has shape {list(entry.shape)}"
                raise InputError(
                    f"weight {name} {found} in the checkpoint; the model needs {list(value.shape)}"
                )
        tied: dict[tuple[Entry, torch.dtype], list[str]] = defaultdict(list)
        for name, dtype in self.dtypes.items():
            tied[shards.entries[name], dtype].append(name)
        self.tied = {name: names for names in tied.values() if len(names) > 1 for name in names}
        for name, buffer in model.named_buffers():
            if name in shards.entries:
                buffer.copy_(shards.read(name))
        for parameter in named.values():
            if not parameter.is_meta:
                parameter.data = parameter.data.to(device)
        for module in model.modules():
            for name, held in module._buffers.items():
                if held is not None:
                    module._buffers[name] = held.to(device)

    def read(self, name: str) -> Tensor:
        """Return a parameter in the model's type, on the CPU: in full precision, or as a method
        has decided it while its tower is quantized.
        """
        decided = self.changes.decided(name)
        return self._original(name) if decided is None else decided.to(self.dtypes[name])

    def replace(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        """Let parameters be made from what the files hold; from now on they are tied to no other.

        Args:
            makers: name -> what makes the parameter, in its shape and the model's type.
        """
        assert makers.keys() <= self.dtypes.keys()
        self.makers |= makers
        left = {n: [o for o in names if o not in makers] for n, names in self.tied.items()}
        self.tied = {n: names for n, names in left.items() if n in names}
        if self._kept is not None:
            self._kept = {n: x for n, x in self._kept.items() if n not in makers}

    def from_files(self, name: str) -> Tensor:
        """Return a parameter as the model's files hold it, in the model's type, on the CPU."""
        read = self.shards.read(name).to(self.dtypes[name])
        if name not in self._checked:  # the files do not change: once is enough
            check_finite([(name, read)], repr(str(self.shards.entries[name].file)))
            self._checked.add(name)
        return read

    def _original(self, name: str) -> Tensor:
        """Return a parameter in full precision, in the model's type."""
        if self._kept is None:
            return self._read(name)
        if name not in self._kept:
            read = self._read(name)
            self._kept[name] = read.pin_memory() if self.device.type == "cuda" else read
        return self._kept[name]

    def _read(self, name: str) -> Tensor:
        if name not in self.makers:
            return self.from_files(name)
        if self.ready is not None:
            return self.ready.read(name).to(self.dtypes[name])
        return self.makers[name]()

    def stored_types(self) -> dict[str, torch.dtype]:
        """Return the types of the parameters that the files hold in half types, where the model's
        are wider.
        """
        found = {name: self.shards.entries[name].dtype for name in self.dtypes}
        return {
            name: kind
            for name, kind in found.items()
            if kind in (torch.float16, torch.bfloat16)
            and kind.itemsize < self.dtypes[name].itemsize
        }

    def sample(self, name: str, stride: int) -> Tensor:
        """Return every ``stride``-th element of a flattened parameter of the files in the model's
        type.
        """
        return self.shards.sample(name, stride).to(self.dtypes[name])

    def nbytes(self, names: Iterable[str]) -> int:
        """Return how much memory parameters take."""
        entries = [(self.shards.entries[n], self.dtypes[n]) for n in names]
        return sum(e.nbytes // e.dtype.itemsize * dtype.itemsize for e, dtype in entries)

    def below(self, prefix: str) -> list[str]:
        """Return the names of a module's parameters."""
        return [name for name in self.dtypes if name.startswith(f"{prefix}.")]

    @contextmanager
    def held(self, names: Iterable[str]) -> Iterator[None]:
        """Within the block the named parameters are in place; those that already were stay.

        Tied parameters that are in place at the same time are one, as in a loaded model.
        """
        placed: list[tuple[nn.Module, str, nn.Parameter]] = []
        try:
            for name in names:
                path, _, own = name.rpartition(".")
                owner = self.model.get_submodule(path)
                empty = owner._parameters[own]
                if empty is not None and empty.is_meta:
                    value = self._tied_in_place(name)
                    if value is None:
                        # a copy, so that nobody writes into what is kept
                        copy = self._kept is not None
                        read = self.read(name).to(self.device, non_blocking=True, copy=copy)
                        value = nn.Parameter(read, requires_grad=False)
                    placed.append((owner, own, empty))
                    owner._parameters[own] = value
            yield
        finally:
            for owner, own, empty in placed:
                owner._parameters[own] = empty
                if isinstance(owner, QuantLinear):
                    owner.forget()
            if placed and self._kept is None:
                _give_back()

    def _tied_in_place(self, name: str) -> nn.Parameter | None:
        """Return a parameter that lies where ``name`` lies in the files, if it is in place."""
        others = (self.model.get_parameter(other) for other in self.tied.get(name, ()))
        return next((other for other in others if not other.is_meta), None)


def _keep_tensors_off_the_heap() -> None:
    """Let large tensors have pages of their own, which go back to the system as soon as they are
    freed.

    Left alone, glibc takes tensors of up to 32 MB from its heap, which then grows from layer to
    layer in pieces between which the next one does not fit.
    """
    if _GLIBC is not None:
        _GLIBC.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES)


def _give_back() -> None:
    """Give back to the system what is free on the heap."""
    if _GLIBC is not None:
        _GLIBC.malloc_trim(0)

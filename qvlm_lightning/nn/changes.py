"""Tensors of full-precision layers that a method has changed, with what they were."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.nn.calibrated import is_quantizer_tensor

Read = Callable[[], Tensor]


@dataclass
class _Change:
    """One changed tensor.

    Attributes:
        tower: while it is quantized, the decided tensor is in place.
        owner, own: module and attribute of the tensor.
        original: what it was; ``None`` if the model has no weights but reads them when needed.
        decided: gives what it is now.
    """

    tower: str
    owner: nn.Module
    own: str
    original: Tensor | None
    decided: Read


class Changes:
    """Weights, biases and gains of norms that methods have decided, by their names in the model.

    Full precision stays what it was: a changed tensor is in place while its tower's quantizers are
    on, and the original one while they are off. So targets and statistics never depend on
    what has been decided, and a resumed run sees the same ones.
    """

    def __init__(self) -> None:
        self._changes: dict[str, _Change] = {}
        self._on: dict[str, bool] = {}
        self._only: tuple[tuple[str, ...], Collection[str]] | None = None

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of changed tensors."""
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)

    def set(self, model: nn.Module, tower: str, name: str, decided: Tensor | Read) -> None:
        """Put a decided tensor in the place of ``name``.

        Args:
            model: owns it.
            tower: the tower it belongs to.
            name: full name of a parameter or buffer.
            decided: the tensor, of the same shape; for a model without weights, what reads it.
        """
        path, _, own = name.rpartition(".")
        owner = model.get_submodule(path)
        present = getattr(owner, own)
        if own in owner._buffers and not isinstance(decided, Tensor):
            decided = decided()  # a model without weights has its buffers
        original: Tensor | None = None
        if isinstance(decided, Tensor):
            if decided.shape != present.shape:
                raise ValueError(
                    f"{name} has shape {list(present.shape)}, the decision {list(decided.shape)}"
                )
            known = self._changes.get(name)
            original = present.data if known is None else known.original
            value = decided.detach().to(present.device, present.dtype).contiguous()
            read: Read = partial(_same, value)
        else:
            read = decided
        self._changes[name] = _Change(tower, owner, own, original, read)
        if self._in_place(name) and not present.is_meta:
            present.data = read().to(present.device, present.dtype)

    def switch(self, tower: str, on: bool) -> None:
        """Put the decided tensors of a tower in place, or the original ones."""
        if self._on.get(tower) == on:
            return
        self._on[tower] = on
        self._place()

    @contextmanager
    def only(self, modules: Collection[str], towers: Collection[str]) -> Iterator[None]:
        """Within the block exactly the decided tensors inside ``modules`` and of ``towers`` are in
        place; afterwards as before.
        """
        before, self._only = self._only, (tuple(f"{module}." for module in modules), towers)
        self._place()
        try:
            yield
        finally:
            self._only = before
            self._place()

    def _in_place(self, name: str) -> bool:
        """Return whether the decided tensor is in place, not the original one."""
        tower = self._changes[name].tower
        if self._only is None:
            return self._on.get(tower, False)
        modules, towers = self._only
        return name.startswith(modules) or tower in towers

    def _place(self) -> None:
        for name, change in self._changes.items():
            if change.original is not None:
                value = change.decided() if self._in_place(name) else change.original
                getattr(change.owner, change.own).data = value

    def drop(self, tower: str) -> list[str]:
        """Forget what was decided for a tower, and return the names; the original tensors are in
        place.
        """
        names = [name for name, change in self._changes.items() if change.tower == tower]
        on = self._on.get(tower, False)
        self.switch(tower, False)
        for name in names:
            del self._changes[name]
        self._on[tower] = on
        return names

    def decided(self, name: str) -> Tensor | None:
        """Return the decided tensor of ``name`` if what it belongs to is quantized at present."""
        change = self._changes.get(name)
        return change.decided() if change is not None and self._in_place(name) else None

    def original(self, name: str, present: Tensor) -> Tensor:
        """Return the full-precision tensor of ``name``.

        Args:
            name: full name.
            present: what is in place, which is returned unless it was changed.
        """
        change = self._changes.get(name)
        return present if change is None or change.original is None else change.original


def as_stored(
    tensors: Mapping[str, Tensor], stored: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """Return tensors rounded to the types in which they will be stored, each in its own type.

    A half-precision folder gives a half-precision artifact, also of weights that a method has
    changed; so codes and J are computed from what the artifact will hold. Gradients pass.

    Args:
        tensors: by their full names.
        stored: types by name, of those that the model's folder holds in a narrower type.

    Example:
        >>> float(as_stored({"w": torch.tensor(1 / 3)}, {"w": torch.bfloat16})["w"])
        0.333984375
    """
    return {
        name: value.to(stored[name]).to(value.dtype) if name in stored else value
        for name, value in tensors.items()
    }


def _same(value: Tensor) -> Tensor:
    return value


def commit(
    model: nn.Module,
    changes: Changes,
    tower: str,
    tensors: Mapping[str, Tensor],
    reader: Callable[[str], Read] | None = None,
) -> list[str]:
    """Put what a method decided for layers of a tower into the model.

    Args:
        model: with quantized layers.
        changes: takes what does not belong to a quantizer.
        tower: whose layers they are.
        tensors: by their full names.
        reader: for a model that is read layer by layer, gives what reads a changed tensor by its
            name; the tensor itself is not kept.

    Returns:
        The names of the tensors that belong to no quantizer.

    Raises:
        AttributeError: the model has no tensor of such a name.
    """
    changed = [name for name in tensors if not is_quantizer_tensor(name)]
    for name in changed:
        changes.set(model, tower, name, reader(name) if reader else tensors[name])
    for name in tensors.keys() - set(changed):
        value = tensors[name]
        path, _, own = name.rpartition(".")
        owner: Any = model.get_submodule(path)
        present = getattr(owner, own)
        if present is None:  # the range of a weight that was measured until now
            setattr(owner, own, value.detach().to(owner.clip_ratio.device, torch.float32).clone())
        else:
            with torch.no_grad():
                present.copy_(value)
    return changed

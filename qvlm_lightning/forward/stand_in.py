"""Layers that are called but do not run: they refuse, or give what something else says."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from qvlm_lightning.nn.structure import Unit


def refuse(unit: Unit) -> None:
    """Let a unit raise ``RuntimeError`` when it is called, until it is :func:`runnable`."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{unit.name} was run while its weights were not in place")

    vars(unit.module)["forward"] = forward


@contextmanager
def runnable(units: Sequence[Unit]) -> Iterator[None]:
    """Within the block ``units`` run; afterwards they do what they did before."""
    before = [(unit, vars(unit.module).pop("forward", None)) for unit in units]
    try:
        yield
    finally:
        for unit, forward in before:
            if forward is not None:
                vars(unit.module)["forward"] = forward


@contextmanager
def stand_in(
    unit: Unit, give: Callable[[Tensor], Tensor], tuples: Collection[str]
) -> Iterator[None]:
    """Within the block, a unit returns ``give(hidden)`` and needs no weights.

    Args:
        unit: one that refuses to run.
        give: hidden state [B, T, D] that comes in -> what goes out.
        tuples: names of the units that return a tuple.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        result = give(args[0] if args else kwargs["hidden_states"])
        return (result,) if unit.name in tuples else result

    own = vars(unit.module)
    before = own["forward"]
    own["forward"] = forward
    try:
        yield
    finally:
        own["forward"] = before

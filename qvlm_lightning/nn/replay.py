"""Run single layers on inputs caught from a forward pass of the whole model."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.nn.structure import Unit
from qvlm_lightning.nn.taps import stop_at


@dataclass
class UnitInput:
    """What the first unit of a tower was called with for one batch; ``hidden`` advances unit by
    unit.

    Attributes:
        hidden: [B, T, D].
        kwargs: masks and positions, the same for every unit of the tower.
        mask: [B, T] bool, tokens that count; ``None`` for all.
    """

    hidden: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    mask: Tensor | None = None

    def advanced(self, hidden: Tensor) -> "UnitInput":
        """Return the same call with another hidden state."""
        return UnitInput(hidden, self.args, self.kwargs, self.mask)


@torch.no_grad()
def catch_inputs(model: nn.Module, first: nn.Module, inputs: dict[str, Tensor]) -> UnitInput | None:
    """Run ``model(**inputs)`` up to ``first`` and return that call; ``None`` if it is never made.

    A batch without images never calls the vision tower.
    """
    caught: list[UnitInput] = []

    def see(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        if "past_key_values" in kwargs:
            kwargs["past_key_values"] = None
        if "use_cache" in kwargs:
            kwargs["use_cache"] = False
        caught.append(UnitInput(hidden.detach(), rest, kwargs))

    with stop_at(first, see):
        model(**inputs)
    return caught[0] if caught else None


def run_unit(unit: Unit, hidden: Tensor, call: UnitInput, copies: int = 1) -> Tensor:
    """Run one unit; ``hidden`` [copies * B, T, D] holds ``copies`` stacked versions of the batch of
    ``call``.
    """
    size = call.hidden.shape[0]

    def spread(value: Any) -> Any:
        if (
            isinstance(value, Tensor)
            and copies > 1
            and value.dim()
            and value.shape[0] == size
            and size > 1
        ):
            return value.repeat(copies, *[1] * (value.dim() - 1))
        if isinstance(value, tuple):
            return tuple(spread(v) for v in value)
        return value

    args = tuple(spread(v) for v in call.args)
    kwargs = {name: spread(v) for name, v in call.kwargs.items()}
    output = unit.module(hidden, *args, **kwargs)
    return output[0] if isinstance(output, tuple) else output


def run_candidates(
    unit: Unit,
    hidden: Tensor,
    call: UnitInput,
    tables: Sequence[tuple[Tensor, Tensor]],
    choice: Tensor,
) -> Tensor:
    """Run one unit for C candidates stacked in the batch dimension.

    Args:
        unit: the unit.
        hidden: [C * B, T, D].
        call: where masks and positions come from.
        tables: per site of the unit, (low, high), each [P, *shape]: the ranges of its percentiles.
        choice: [C, number of sites] int64, which percentile each candidate uses at each site.

    Returns:
        [C * B, T, D]
    """
    with ExitStack() as stack:
        for column, (site, (low, high)) in enumerate(zip(unit.sites, tables, strict=True)):
            rows = choice[:, column]
            stack.enter_context(site.quantizer.candidates(low[rows], high[rows]))
        return run_unit(unit, hidden, call, copies=choice.shape[0])

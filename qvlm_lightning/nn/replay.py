"""Run single layers on inputs caught from a forward pass of the whole model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.sinks import SinkTokens
from qvlm_lightning.nn.structure import Unit
from qvlm_lightning.nn.taps import stop_at


@dataclass
class Call:
    """How one unit is called where that differs from the tower's first.

    Attributes:
        args, kwargs: masks and positions of this unit.
        added: [B, T, D], what the model adds to the previous unit's output on the way here
            (features that enter the decoder at several depths); ``None`` for nothing.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    added: Tensor | None = None


@dataclass
class UnitInput:
    """What the first unit of a tower was called with for one batch; ``hidden`` advances unit by
    unit.

    Attributes:
        hidden: [B, T, D], or [patches, D] of a tower without a batch dimension.
        args: positional arguments after ``hidden``.
        kwargs: masks and positions, the same for every unit of the tower that ``per_unit`` does not
            name.
        mask: [B, T] bool, tokens that count; ``None`` for all.
        kind: [B, T] int64, kind of each token (see ``models.family``), where somebody asks for it.
        per_unit: unit name -> its own call.
        sinks: sink tokens of the decoder and their places, [B, T] int64; ``None`` for none.
    """

    hidden: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    mask: Tensor | None = None
    kind: Tensor | None = None
    per_unit: dict[str, Call] = field(default_factory=dict)
    sinks: tuple[SinkTokens, Tensor] | None = None

    def advanced(self, hidden: Tensor) -> "UnitInput":
        """Return the same call with another hidden state."""
        return replace(self, hidden=hidden)

    def sinks_placed(self, spread: bool = False) -> AbstractContextManager[None]:
        """Within the block, what is run by itself knows the sink tokens of this call.

        Args:
            spread: experts are given [B, T, D], as :func:`~qvlm_lightning.nn.routing.spread` does.
        """
        if self.sinks is None:
            return nullcontext()
        tokens, place = self.sinks
        return tokens.at(place, spread)

    def of(self, unit: str) -> Call:
        """Return how a unit is called."""
        return self.per_unit.get(unit) or Call(self.args, self.kwargs)


@torch.no_grad()
def catch_calls(
    model: nn.Module, units: Sequence[Unit], inputs: dict[str, Tensor]
) -> UnitInput | None:
    """Run ``model(**inputs)`` up to the last of ``units`` and return how all of them are called;
    ``None`` if they never are.

    What the units compute is not asked for: the first one alone runs, to see what it returns.

    Args:
        model: runs as it stands.
        units: of one tower, in forward order.
        inputs: of the model.
    """
    found: list[UnitInput] = []
    added: list[Tensor | None] = []

    def see(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own = _call_of(args, kwargs)
        # zeros are let go at once: as many as there are units would be as large as a layer
        added.append(own.hidden if found and bool(own.hidden.any()) else None)
        if found:
            own.hidden = own.hidden.new_empty(0)
        found.append(own)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(args, kwargs)

    returned: list[Any] = []

    def nothing(*_: Any, **__: Any) -> Any:
        # what reaches the next unit is then what the model adds, and nothing else
        output = returned[0]
        if isinstance(output, tuple):
            return torch.zeros_like(output[0]), *output[1:]
        return torch.zeros_like(output)

    def after(*seen: Any) -> Any:
        returned.append(seen[-1])
        return nothing()

    with ExitStack() as stack:
        for place, unit in enumerate(units[:-1]):
            handle = unit.module.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
            if place:
                held = vars(unit.module)
                before_it = {name: held[name] for name in ("forward",) if name in held}
                stack.callback(held.update, before_it)  # called behind the next one
                stack.callback(held.pop, "forward")
                held["forward"] = nothing
            else:
                stack.callback(unit.module.register_forward_hook(after).remove)
        stack.enter_context(stop_at(units[-1].module, see))
        model(**inputs)
    if not found:
        return None
    assert len(found) == len(units), "the units of a tower run once each, in order"
    first = found[0]
    for unit, own, more in zip(units[1:], found[1:], added[1:], strict=True):
        alike = _same(own.args, first.args) and _same(own.kwargs, first.kwargs)
        if not alike or more is not None:
            first.per_unit[unit.name] = Call(own.args, own.kwargs, more)
    return first


def _call_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> UnitInput:
    """Return a call without its cache, which a replay must not fill."""
    kwargs = dict(kwargs)
    hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
    if "past_key_values" in kwargs:
        kwargs["past_key_values"] = None
    if "use_cache" in kwargs:
        kwargs["use_cache"] = False
    return UnitInput(hidden.detach(), rest, kwargs)


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, tensors by value."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return type(one) is type(other) and bool(one == other)


@contextmanager
def placed(unit: Unit, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, a unit's parameters and buffers are those of ``tensors``.

    They take the type of what they replace, so that a result is that of a model that holds them.
    Nothing that layers keep from one run to the next goes in or out but quantized weights, which
    know what they are made of: those of the last ``tensors`` are there when these come again.

    Args:
        unit: the unit.
        tensors: full name -> tensor; names outside the unit are passed over.
    """
    mine = {n.removeprefix(f"{unit.name}."): x for n, x in tensors.items()}
    mine = {n: x for n, x in mine.items() if n not in tensors}
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for name, value in mine.items():
            path, _, own = name.rpartition(".")
            owner: Any = unit.module
            for step in path.split(".") if path else ():  # get_submodule takes three times as long
                owner = owner._modules[step]
            held = owner._parameters if own in owner._parameters else owner._buffers
            before = held[own]
            replaced.append((held, own, before))
            held[own] = value if before is None else value.to(before.device, before.dtype)
        if replaced:
            _forget_inputs(unit)
        yield
    finally:
        for held, own, before in replaced:
            held[own] = before
        if replaced:
            _forget_inputs(unit)


def _forget_inputs(unit: Unit) -> None:
    """Let all transformed and quantized inputs of a unit's layers go."""
    for site in unit.sites:
        site.forget_inputs()


def run_unit(
    unit: Unit,
    hidden: Tensor,
    call: UnitInput,
    copies: int = 1,
    tensors: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Run one unit.

    Args:
        unit: the unit.
        hidden: [copies * B, T, D], ``copies`` stacked versions of the batch of ``call``.
        call: where masks and positions come from.
        copies: see ``hidden``.
        tensors: instead of those of the model, by full name; gradients reach them. Those of other
            units are passed over.

    Returns:
        [copies * B, T, D]
    """
    size = call.hidden.shape[0]

    def spread(value: Any, rotary: bool = False) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(spread(v, rotary) for v in value)
        if not isinstance(value, Tensor) or copies == 1 or size == 1:
            return value
        # positions of several axes (M-RoPE) may come first: [3, B, T, head]
        axis = max(value.dim() - 3, 0) if rotary else 0
        if value.dim() <= axis or value.shape[axis] != size:
            return value
        return value.repeat(*[1] * axis, copies, *[1] * (value.dim() - axis - 1))

    own = call.of(unit.name)
    if own.added is not None:
        hidden = hidden + own.added.repeat(copies, *[1] * (own.added.dim() - 1))
    args = tuple(spread(v) for v in own.args)
    kwargs = {n: spread(v, n == "position_embeddings") for n, v in own.kwargs.items()}
    with placed(unit, tensors or {}), call.sinks_placed():
        output = unit.module(hidden, *args, **kwargs)
    return output[0] if isinstance(output, tuple) else output


def run_full_precision(
    unit: Unit, hidden: Tensor, call: UnitInput, tensors: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return the output of a unit whose quantizers are off, [B, T, D]."""
    modules: list[ActivationQuantizer | QuantLinear] = [site.quantizer for site in unit.sites]
    modules += [linear for site in unit.sites for linear in site.linears.values()]
    before = [module.enabled for module in modules]
    for module in modules:
        module.enabled = False
    try:
        return run_unit(unit, hidden, call, tensors=tensors)
    finally:
        for module, on in zip(modules, before, strict=True):
            module.enabled = on


def run_candidates(
    unit: Unit,
    hidden: Tensor,
    call: UnitInput,
    tables: Sequence[tuple[Tensor, Tensor]],
    choice: Tensor,
    tensors: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Run one unit for C candidates stacked in the batch dimension.

    Packed patches [P, D] have no batch dimension: their candidates run one after another.

    Args:
        unit: the unit.
        hidden: [C * B, T, D].
        call: where masks and positions come from.
        tables: per site of the unit, (low, high), each [P, *shape]: the ranges of its percentiles.
        choice: [C, number of sites] int64, which percentile each candidate uses at each site.
        tensors: see :func:`run_unit`; common to all candidates.

    Returns:
        [C * B, T, D]
    """
    if hidden.dim() == 2 and len(choice) > 1:
        parts = zip(hidden.chunk(len(choice)), choice, strict=True)
        one = [run_candidates(unit, h, call, tables, c[None], tensors) for h, c in parts]
        return torch.cat(one)
    with ExitStack() as stack:
        for column, (site, (low, high)) in enumerate(zip(unit.sites, tables, strict=True)):
            rows = choice[:, column]
            stack.enter_context(site.quantizer.candidates(low[rows], high[rows]))
        return run_unit(unit, hidden, call, choice.shape[0], tensors)

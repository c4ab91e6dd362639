"""Groups of layers whose inputs are scaled together, and how much a scale hurts their output."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.block_tensors import common_module
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.scaling import channel_extremes, scaled, static_sites, stores_output
from qvlm_lightning.methods.site_statistics import Chain
from qvlm_lightning.models.family import Source
from qvlm_lightning.nn.replay import UnitInput, placed, run_full_precision
from qvlm_lightning.nn.structure import Site, Unit
from qvlm_lightning.nn.taps import ReachedError


@dataclass(frozen=True)
class FoldGroup:
    """Sites that read one norm or Linear layer.

    Attributes:
        unit: place of their unit in the block.
        source: what makes their inputs.
        sites: all of them.
        place: full name of the module at whose output a scale is judged: the attention, the MLP, a
            single layer.
    """

    unit: int
    source: Source
    sites: list[Site]
    place: str


def fold_groups(block: Block, unit: int, norms_only: bool = False) -> list[FoldGroup]:
    """Return the groups of a unit in forward order.

    Left out are sites without a source that is known, and those whose source stores outputs for
    sink tokens.

    Args:
        block: the block.
        unit: place of the unit in it.
        norms_only: leave out groups behind a Linear layer.
    """
    found: dict[tuple[str, tuple[int, int] | None], list[Site]] = {}
    for site in block.units[unit].sites:
        source = block.sources.get(site.name)
        if source is None or stores_output(block, site) or (norms_only and source.kind != "norm"):
            continue
        found.setdefault((source.name, source.rows), []).append(site)
    groups = []
    for sites in found.values():
        places = sorted({block.place(site) for site in sites})
        place = places[0] if len(places) == 1 else common_module(places)
        groups.append(FoldGroup(unit, block.sources[sites[0].name], sites, place))
    return groups


@dataclass(frozen=True)
class _Caught:
    """How the place was called in a batch, and what it gave in full precision."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Tensor


@torch.no_grad()
def fold_errors(
    block: Block,
    group: FoldGroup,
    factors_CS: Tensor,
    before: Decision,
    power: float = 2.0,
    chain: Chain = "full_precision",
) -> Tensor:
    """Return the error of every scale at the output of the group's place, [C] float64.

    That is ``sum_t w_t sum_d |y_td - y_td^fp|^p`` relative to ``sum_t w_t sum_d |y_td^fp|^p``, with
    the weights and inputs of the group's layers quantized and all else in full precision.

    Args:
        block: with its cached inputs; its token weights count.
        group: whose inputs are scaled.
        factors_CS: candidates.
        before: what was decided before.
        power: p.
        chain: where inputs come from: full precision, or behind quantized earlier layers. The
            target is that of full precision.
    """
    unit, module = block.units[group.unit], block.module(group.place)
    caught = {batch: _catch(block, group, batch, before, chain) for batch in block.mine()}
    extremes = channel_extremes(block, static_sites(group.sites), before, chain)
    outside = not group.source.name.startswith(f"{group.place}.")
    errors = block.error_table(len(factors_CS))
    for index, factor_S in enumerate(factors_CS):
        tensors = block.decided(scaled(block, group.sites[0], factor_S, before, extremes))
        with placed(unit, tensors), _only(unit, group.sites):
            for batch, own in caught.items():
                if own is None:  # an expert that no token came to
                    continue
                call = _call(block, batch, chain)
                with call.sinks_placed():
                    args, kwargs = own.args, own.kwargs
                    if outside:
                        args, kwargs = _divided(args, kwargs, group.source, factor_S)
                    output = _tensor(module(*args, **kwargs))
                weight = block.weight(batch, at=group.place)
                errors[batch, index] = _terms(output, own.target, weight, power)
                block.cost.count(sites=len(group.sites))
    return block.reduce(errors)


def _catch(
    block: Block, group: FoldGroup, batch: int, before: Decision, chain: Chain
) -> _Caught | None:
    """Return how the place is called in a batch, with its full-precision output."""
    exact = _run_to(block, group, batch, before, "full_precision")
    if exact is None or chain == "full_precision":
        return exact
    other = _run_to(block, group, batch, before, chain)
    return None if other is None else _Caught(other.args, other.kwargs, exact.target)


def _run_to(
    block: Block, group: FoldGroup, batch: int, before: Decision, chain: Chain
) -> _Caught | None:
    """Run up to the place and through it, its unit in full precision; ``None`` if it never runs."""
    call, tensors = _call(block, batch, chain), block.decided(before)
    unit, found = block.units[group.unit], []
    if chain == "quantized":
        hidden = block.run(batch, before, slice(0, group.unit))
    else:
        hidden = call.hidden
        for earlier in block.units[: group.unit]:
            hidden = run_full_precision(earlier, hidden, call, tensors)

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found.append(_Caught(args, kwargs, _tensor(output)))
        raise ReachedError

    module = block.module(group.place)
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        run_full_precision(unit, hidden, call, tensors)
    except ReachedError:
        pass
    finally:
        handle.remove()
    block.cost.count(layers=1)
    return found[0] if found else None


def _call(block: Block, batch: int, chain: Chain) -> UnitInput:
    return (block.x_q if chain == "quantized" else block.x_fp)[batch]


def _tensor(output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def _divided(
    args: tuple[Any, ...], kwargs: dict[str, Any], source: Source, factor_S: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call whose hidden states the source has divided."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    channels = source.channels(hidden.shape[-1]).to(hidden.device)
    divided = (hidden.float() / factor_S.to(hidden.device).float()[channels]).to(hidden.dtype)
    if args:
        return (divided, *args[1:]), kwargs
    return args, kwargs | {"hidden_states": divided}


@contextmanager
def _only(unit: Unit, sites: Sequence[Site]) -> Iterator[None]:
    """Within the block, exactly these sites of a unit are quantized."""
    modules: list[Any] = [site.quantizer for site in unit.sites]
    modules += [linear for site in unit.sites for linear in site.linears.values()]
    on = {id(site.quantizer) for site in sites}
    on |= {id(linear) for site in sites for linear in site.linears.values()}
    before = [module.enabled for module in modules]
    for module in modules:
        module.enabled = id(module) in on
    try:
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.enabled = was


def _terms(output: Tensor, target: Tensor, weight: Tensor | None, power: float) -> Tensor:
    """Return numerator and denominator of a batch's error, [2] float64."""
    error, size = (output.float() - target.float()).abs(), target.float().abs()
    sums = []
    for x in (error, size):
        by_token = x.pow(power).sum(dim=-1)
        if weight is not None:
            by_token = by_token.reshape(weight.shape) * weight
        sums.append(by_token.double().sum().cpu())
    return torch.stack(sums)

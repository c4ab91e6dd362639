"""Replace Linear layers by quantized ones, in place, and account for every module that holds a
weight.
"""

import re
from typing import Any

import torch
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.routing import Route
from qvlm_lightning.nn.sinks import SinkOutput, SinkTokens
from qvlm_lightning.nn.structure import Site, Structure, Tower, Unit
from qvlm_lightning.quant.scheme import OFF, Scheme

_LEFT_IN_FULL_PRECISION = (nn.Embedding, nn.modules.conv._ConvNd)
_ROUTER = "router of experts, kept in full precision"


def quantize_model(
    model: nn.Module,
    family: VLMFamily,
    scheme: Scheme,
    device: torch.device | None = None,
    accepted: bool = False,
) -> Structure:
    """Swap the Linear layers of tower, projector and decoder for :class:`QuantLinear`; quantizers
    stay off.

    Args:
        model: a full-precision model; changed in place.
        family: names the parts.
        scheme: widths per part, activation mode, groups and the ignore list.
        device: of the quantizers; default that of the weights, which may be missing (meta).
        accepted: the scheme is that of an artifact: a group size without any effect, which used to
            be allowed, does not keep it from loading.

    Returns:
        The towers with their sites, the names of the quantized modules (-> part) and of the ignored
        ones (-> reason).

    Raises:
        InputError: a module holds weights but is not a plain Linear layer, an ignore pattern
            matches nothing, a group size divides no layer (with ``group_fallback: error``, not
            every one), or nothing is left to quantize.
    """
    layers = {
        "vision": family.vision_layers(model),
        **{tower: [named] for tower, named in family.projectors(model).items()},
        "language": family.decoder_layers(model),
    }
    kept = {name: reason for name, _, reason in family.full_precision(model)}
    structure = Structure(towers={}, quantized={}, ignored=dict(kept))
    used_patterns: set[str] = set()
    plans: list[tuple[str, Unit, dict[str, list[str]]]] = []
    for tower, named in layers.items():
        part = tower.partition(".")[0]  # projector.deepstack_0 is a projector
        structure.towers[tower] = Tower(tower, [Unit(name, module) for name, module in named])
        for unit in structure.towers[tower].units:
            _check_weights(family, unit, part, scheme, structure, used_patterns)
            plans.append((part, unit, _plan(family, unit, part, scheme, structure, used_patterns)))
    _account_for_the_rest(model, family, structure)
    for pattern in scheme.ignore:
        if pattern not in used_patterns and not any(
            re.search(pattern, n) for n in structure.ignored
        ):
            raise InputError(f"ignore pattern {pattern!r} matches no Linear layer of the model")
    if not structure.quantized:
        raise InputError(
            "the scheme leaves nothing to quantize: every part is at 16 bits or ignored"
        )
    if not accepted:
        _check_groups(model, scheme, structure)
    stored = _stored_projections(family, structure, scheme)
    # only now, so that a refused model is left as it was
    for part, unit, plan in plans:
        unit.sites = [
            _quantize_site(model, family, unit, part, scheme, structure, site, names, device)
            for site, names in plan.items()
        ]
    if scheme.sink != "none":
        structure.sinks = SinkTokens(stored=scheme.sink == "prefix")
        structure.sinks.watch(model)
        for site in structure.towers["language"].sites:
            site.quantizer.sinks, site.quantizer.route = structure.sinks, site.route
        for name in stored:
            linear = model.get_submodule(name)
            assert isinstance(linear, QuantLinear)
            linear.sink_output = SinkOutput(structure.sinks)
    return structure


def _stored_projections(family: VLMFamily, structure: Structure, scheme: Scheme) -> list[str]:
    """Return the Linear layers whose outputs for the first tokens are stored.

    Raises:
        InputError: there is nothing about sinks to be done, or keys and values of a decoder layer
            do not come from quantized Linear layers.
    """
    if scheme.sink == "none":
        return []
    if "language" not in structure.quantized.values():
        raise InputError(
            f"sink {scheme.sink!r} is about the decoder, and the scheme leaves it in full "
            "precision; quantize the language part, or sink: none"
        )
    names: list[str] = []
    for unit in structure.towers["language"].units if scheme.sink == "prefix" else ():
        attention = family.attention(unit.module)
        if attention is None:
            raise InputError(
                f"sink 'prefix' needs to know the keys and values of every decoder layer, and the "
                f"attention of {unit.name} has another form; allowed here: 'none', 'bypass'"
            )
        found = dict.fromkeys(f"{unit.name}.{x.name}" for x in (attention.k, attention.v))
        plain = next((name for name in found if name not in structure.quantized), None)
        if plain is not None:
            raise InputError(
                f"sink 'prefix' needs quantized key and value projections in every decoder layer; "
                f"{plain} is left alone ({structure.ignored.get(plain, 'not quantized')})"
            )
        names += found
    return names


def _plan(
    family: VLMFamily,
    unit: Unit,
    part: str,
    scheme: Scheme,
    structure: Structure,
    used: set[str],
) -> dict[str, list[str]]:
    """Return site -> Linear layers to quantize, and write down what is left; changes no module."""
    plain = {name: x for name, x in unit.module.named_modules() if type(x) is nn.Linear}
    groups = family.input_groups(unit.module)
    named = {name for names in groups.values() for name in names}
    groups = groups | {name: [name] for name in plain if name not in named}
    routers = set(family.routers(unit.module))
    plan: dict[str, list[str]] = {}
    for site, names in groups.items():
        for name in (n for n in names if n in plain):
            full = f"{unit.name}.{name}"
            pattern = next((p for p in scheme.ignore if re.search(p, full)), None)
            if pattern is not None:
                used.add(pattern)
                structure.ignored[full] = f"ignore pattern {pattern!r}"
            elif name in routers:
                structure.ignored[full] = _ROUTER
            elif _off(scheme, part):
                structure.ignored[full] = f"part {part!r} is at 16 bits"
            else:
                _group(scheme, part, full, plain[name])  # refuses before anything is changed
                structure.quantized[full] = part
                plan.setdefault(site, []).append(name)
    return plan


def _quantize_site(
    model: nn.Module,
    family: VLMFamily,
    unit: Unit,
    part: str,
    scheme: Scheme,
    structure: Structure,
    site_name: str,
    names: list[str],
    device: torch.device | None,
) -> Site:
    widths = scheme.part(part)
    plain: dict[str, Any] = dict(unit.module.named_modules())
    shape = _range_shape(model, family, part, scheme, plain[names[0]].in_features, structure)
    mode = scheme.activation_mode
    quantizer = ActivationQuantizer(widths.activation_bits, mode, shape, len(names))
    quantizer.to(device or plain[names[0]].weight.device)
    linears = {}
    for name in names:
        group = _group(scheme, part, f"{unit.name}.{name}", plain[name])
        if group is None and scheme.group_size is not None and widths.weight_bits < OFF:
            structure.notes.append(
                f"{unit.name}.{name}: group size {scheme.group_size} does not divide "
                f"{plain[name].in_features} inputs, one scale per output channel instead"
            )
        new = QuantLinear.from_linear(
            plain[name],
            quantizer,
            name == names[0],
            widths.weight_bits,
            group,
            scheme.weight_symmetric,
            device,
        )
        model.set_submodule(f"{unit.name}.{name}", new)
        linears[f"{unit.name}.{name}"] = new
    route = _route(family, unit, names[0], site_name)
    return Site(f"{unit.name}.{site_name}", quantizer, linears, route)


def _group(scheme: Scheme, part: str, name: str, linear: nn.Linear) -> int | None:
    """Return how many inputs of a layer share a weight scale; weights at 16 bits have none."""
    if scheme.part(part).weight_bits == OFF:
        return None
    try:
        return scheme.weight_groups(linear.in_features)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _check_groups(model: nn.Module, scheme: Scheme, structure: Structure) -> None:
    """Refuse a group size that would leave one scale per output channel everywhere."""
    widths: set[int] = set()
    for name, part in structure.quantized.items():
        if scheme.part(part).weight_bits < OFF:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            widths.add(linear.in_features)
    size = scheme.group_size
    if size is not None and widths and all(width % size for width in widths):
        seen = ", ".join(map(str, sorted(widths)))
        raise InputError(
            f"group_size {size} divides the inputs of no quantized Linear layer; the layers have "
            f"{seen} inputs, choose a divisor"
        )


def _route(family: VLMFamily, unit: Unit, linear: str, site_name: str) -> Route | None:
    """Return which expert a Linear layer belongs to, if any."""
    for name, experts in family.experts(unit.module).items():
        if linear.startswith(f"{name}."):
            index, _, role = site_name.removeprefix(f"{name}.").partition(".")
            return Route(experts, int(index), f"{unit.name}.{name}", role)
    return None


def _range_shape(
    model: nn.Module,
    family: VLMFamily,
    part: str,
    scheme: Scheme,
    features: int,
    structure: Structure,
) -> tuple[int, ...]:
    if scheme.activation_mode != "static_channel":
        return ()
    if part != "vision":
        return (features,)
    positions = family.vision_positions(model)
    if positions is None:
        note = "vision: dynamic resolution has no fixed positions; static_tensor is used there"
        if note not in structure.notes:
            structure.notes.append(note)
        return ()
    return (positions, 1)


def _off(scheme: Scheme, part: str) -> bool:
    widths = scheme.part(part)
    return widths.weight_bits == OFF and widths.activation_bits == OFF


def _check_weights(
    family: VLMFamily,
    unit: Unit,
    part: str,
    scheme: Scheme,
    structure: Structure,
    used: set[str],
) -> None:
    """Refuse weights that a Linear swap would skip in silence (fused experts, packed
    projections).
    """
    routers = set(family.routers(unit.module))
    for name, module in unit.module.named_modules():
        own = [n for n, p in module.named_parameters(recurse=False) if p.dim() >= 2]
        if not own or type(module) is nn.Linear or isinstance(module, _LEFT_IN_FULL_PRECISION):
            continue
        full = f"{unit.name}.{name}" if name else unit.name
        if full in structure.ignored:
            continue
        pattern = next((p for p in scheme.ignore if re.search(p, full)), None)
        if pattern is None and name in routers:
            structure.ignored[full] = _ROUTER
            continue
        if pattern is None and _off(scheme, part):
            structure.ignored[full] = f"part {part!r} is at 16 bits"
            continue
        if pattern is None:
            raise InputError(
                f"{full} ({type(module).__name__}) holds weights ({', '.join(own)}) but is not a "
                "plain Linear layer; un-fuse it first or name it in scheme.ignore"
            )
        used.add(pattern)
        structure.ignored[full] = f"ignore pattern {pattern!r}"


def _account_for_the_rest(model: Any, family: VLMFamily, structure: Structure) -> None:
    unreachable = {name: reason for name, _, reason in family.unreachable_layers(model)}
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if (
            not isinstance(module, (nn.Linear, *_LEFT_IN_FULL_PRECISION))
            or name in structure.quantized
        ):
            continue
        owner = next(
            (prefix for prefix in unreachable if name == prefix or name.startswith(f"{prefix}.")),
            None,
        )
        if owner is not None:
            structure.ignored[name] = unreachable[owner]
        elif module is head:
            structure.ignored[name] = "output head, kept in full precision"
        elif isinstance(module, _LEFT_IN_FULL_PRECISION):
            structure.ignored[name] = f"{type(module).__name__}, kept in full precision"
        else:
            structure.ignored.setdefault(name, "outside tower layers, projector and decoder layers")

"""Replace Linear layers by quantized ones, in place, and account for every module that holds a
weight.
"""

from typing import Any

import torch
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.overridden import check_overrides
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.routing import Route
from qvlm_lightning.nn.sink_surgery import keep_sinks, stored_projections
from qvlm_lightning.nn.structure import Site, Structure, Tower, Unit
from qvlm_lightning.quant.patterns import matches
from qvlm_lightning.quant.scheme import OFF, PartScheme, Scheme
from qvlm_lightning.quant.targets import check_layer

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
        scheme: widths per part and of single layers, activation mode, groups and the ignore list.
        device: of the quantizers; default that of the weights, which may be missing (meta).
        accepted: the scheme is that of an artifact: a group size without any effect, which used to
            be allowed, does not keep it from loading.

    Returns:
        The towers with their sites, the names of the quantized modules (-> part) and of the ignored
        ones (-> reason).

    Raises:
        InputError: a module holds weights but is not a plain Linear layer, a pattern to ignore or
            override matches nothing, overrides give layers of one input different activation bits,
            a group size divides no layer (with ``group_fallback: error``, not every one), or
            nothing is left to quantize.
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
    inputs: list[dict[str, PartScheme]] = []
    for tower, named in layers.items():
        part = tower.partition(".")[0]  # projector.deepstack_0 is a projector
        structure.towers[tower] = Tower(tower, [Unit(name, module) for name, module in named])
        for unit in structure.towers[tower].units:
            _check_weights(family, unit, part, scheme, structure, used_patterns)
            plan, widths = _plan(family, unit, part, scheme, structure, used_patterns)
            plans.append((part, unit, plan))
            inputs += widths
    _account_for_the_rest(model, family, structure)
    for pattern in scheme.ignore:
        if pattern not in used_patterns and not any(matches(pattern, n) for n in structure.ignored):
            raise InputError(f"ignore pattern {pattern!r} matches no Linear layer of the model")
    check_overrides(scheme.overrides, inputs)
    if not structure.quantized:
        raise InputError(
            "the scheme leaves nothing to quantize: every part is at 16 bits or ignored"
        )
    if not accepted:
        _check_groups(model, scheme, structure)
    stored = stored_projections(family, structure, scheme)
    # only now, so that a refused model is left as it was
    for part, unit, plan in plans:
        unit.sites = [
            _quantize_site(model, family, unit, part, scheme, structure, site, names, device)
            for site, names in plan.items()
        ]
    if scheme.sink != "none":
        keep_sinks(model, structure, stored)
    return structure


def _plan(
    family: VLMFamily,
    unit: Unit,
    part: str,
    scheme: Scheme,
    structure: Structure,
    used: set[str],
) -> tuple[dict[str, list[str]], list[dict[str, PartScheme]]]:
    """Return site -> Linear layers to quantize, and the widths of all layers of every input that
    are not ignored; write down what is left. Changes no module.
    """
    plain = {name: x for name, x in unit.module.named_modules() if type(x) is nn.Linear}
    groups = family.input_groups(unit.module)
    named = {name for names in groups.values() for name in names}
    groups = groups | {name: [name] for name in plain if name not in named}
    routers = set(family.routers(unit.module))
    plan: dict[str, list[str]] = {}
    inputs: list[dict[str, PartScheme]] = []
    for site, names in groups.items():
        widths: dict[str, PartScheme] = {}
        for name in (n for n in names if n in plain):
            full = f"{unit.name}.{name}"
            pattern = next((p for p in scheme.ignore if matches(p, full)), None)
            if pattern is not None:
                used.add(pattern)
                structure.ignored[full] = f"ignore pattern {pattern!r}"
            elif name in routers:
                structure.ignored[full] = _ROUTER
            else:
                widths[full] = scheme.widths(part, full)
                if _off(widths[full]):
                    structure.ignored[full] = _why_off(scheme, part)
                    continue
                group = _group(scheme, part, full, plain[name])  # refuses before any change
                check_layer(scheme, part, full, widths[full], group, plain[name].in_features)
                structure.quantized[full] = part
                plan.setdefault(site, []).append(name)
        inputs.append(widths)
    return plan, inputs


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
    widths = scheme.widths(part, f"{unit.name}.{names[0]}")
    plain: dict[str, Any] = dict(unit.module.named_modules())
    shape = _range_shape(model, family, part, scheme, plain[names[0]].in_features, structure)
    mode = scheme.activation_mode
    quantizer = ActivationQuantizer(widths.activation_bits, mode, shape, len(names))
    quantizer.to(device or plain[names[0]].weight.device)
    linears = {}
    for name in names:
        weight_bits = scheme.widths(part, f"{unit.name}.{name}").weight_bits
        group = _group(scheme, part, f"{unit.name}.{name}", plain[name])
        if group is None and scheme.group_size is not None and weight_bits < OFF:
            structure.notes.append(
                f"{unit.name}.{name}: group size {scheme.group_size} does not divide "
                f"{plain[name].in_features} inputs, one scale per output channel instead"
            )
        new = QuantLinear.from_linear(
            plain[name],
            quantizer,
            name == names[0],
            weight_bits,
            group,
            scheme.weight_symmetric,
            device,
        )
        new.weight_quantizer.half_scales = scheme.target == "gguf" and part == "language"
        model.set_submodule(f"{unit.name}.{name}", new)
        linears[f"{unit.name}.{name}"] = new
    route = _route(family, unit, names[0], site_name)
    return Site(f"{unit.name}.{site_name}", quantizer, linears, route)


def _group(scheme: Scheme, part: str, name: str, linear: nn.Linear) -> int | None:
    """Return how many inputs of a layer share a weight scale; weights at 16 bits have none."""
    if scheme.widths(part, name).weight_bits == OFF:
        return None
    try:
        return scheme.weight_groups(linear.in_features)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _check_groups(model: nn.Module, scheme: Scheme, structure: Structure) -> None:
    """Refuse a group size that would leave one scale per output channel everywhere."""
    widths: set[int] = set()
    for name, part in structure.quantized.items():
        if scheme.widths(part, name).weight_bits < OFF:
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


def _why_off(scheme: Scheme, part: str) -> str:
    return f"part {part!r} is at 16 bits" if _off(scheme.part(part)) else "overrides give 16 bits"


def _off(widths: PartScheme) -> bool:
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
        pattern = next((p for p in scheme.ignore if matches(p, full)), None)
        if pattern is None and name in routers:
            structure.ignored[full] = _ROUTER
            continue
        if pattern is None and _off(scheme.part(part)):
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

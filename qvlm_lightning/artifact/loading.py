"""Load an artifact: the quantized model with its processor, quantizers on."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from qvlm_lightning.artifact.codes import coded_layers
from qvlm_lightning.artifact.compressed import CompressedTensors
from qvlm_lightning.artifact.filling import StoredTensors, fill, fill_packed, put_transforms
from qvlm_lightning.artifact.saving import save_as_artifact, save_as_copy
from qvlm_lightning.artifact.untrusted import check_sizes, checked_manifest
from qvlm_lightning.errors import InputError, first_line, parse_json
from qvlm_lightning.finite import check_finite
from qvlm_lightning.kernels import PackedModel, quantize_head
from qvlm_lightning.kernels.head import check_head_bits
from qvlm_lightning.models.find import family_for, family_name, known
from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.models.weight_map import stored_names, without_weights
from qvlm_lightning.nn.finite import check_bounds
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.exported import (
    COMPRESSED,
    CONFIG,
    MANIFEST,
    READABLE,
    TensorTypes,
    check_hashes,
    check_there,
    located,
    quantizers_file,
    types_of,
    weights_files,
)


@dataclass
class Artifact:
    """A loaded artifact.

    Attributes:
        model: quantized model, quantizers on.
        processor: its processor.
        manifest: method, scheme, activation_mode, seed, calibration_ids, percentiles, partition,
            versions ...
        structure: towers, units and sites.
        packed: what was packed, and why something was not; ``None`` where nothing should be. Packed
            layers are no part of ``structure``.
    """

    model: nn.Module
    processor: Any
    manifest: dict[str, Any]
    structure: Structure
    packed: PackedModel | None = None


def load_artifact(
    path: str | Path,
    family: type[HubFamily] | None = None,
    packed: bool = False,
    device: torch.device | str = "cpu",
) -> Artifact:
    """Load what :func:`save_artifact` wrote.

    Args:
        path: a folder, or a repository of the hub such as ``owner/name``.
        family: of an artifact whose family is none of this package.
        packed: hold weights as packed codes and compute with them, where that can be done;
            otherwise weights are fake-quantized in their floating type.
        device: where the model goes.

    Raises:
        InputError: the folder is not an artifact, is incomplete or broken, or is of another format
            version or a foreign family; a weight or a bound is NaN or infinite, or a range is
            upside down; the device is not there.
    """
    place = _device(device)
    folder = located(path)
    check_there(folder, MANIFEST, CONFIG)
    manifest, config = (_read(folder, name, _read_object) for name in (MANIFEST, CONFIG))
    if manifest.get("format") not in READABLE:
        allowed = ", ".join(map(str, READABLE))
        raise InputError(
            f"artifact {str(path)!r} has format {manifest.get('format')}; allowed: {allowed}"
        )
    files, beside = weights_files(manifest), quantizers_file(manifest)
    check_there(folder, *files, beside)
    check_hashes(folder, manifest, [*files, beside])
    stored = StoredTensors(*(folder / file for file in files))
    quantizers = _read(folder, beside, load_file)
    if manifest["format"] == 1:
        quantizers = {_present_name(name): value for name, value in quantizers.items()}
    held_by = _family(folder, manifest, str(config.get("model_type")), family)
    try:
        scheme = Scheme.from_dict(manifest.get("scheme"))
        manifest = checked_manifest(manifest, scheme)
        shapes = stored.shapes()
        check_sizes(config, shapes)
        types = types_of(manifest, shapes)
    except InputError as error:
        raise InputError(f"artifact {str(path)!r} is broken: {error}") from error
    model = _empty_model(held_by, types, without_values=packed)
    of_quantizers = torch.device("cpu") if packed else None
    try:
        told = stored_names(model) if manifest["format"] == COMPRESSED else {}
        structure = quantize_model(model, held_by, scheme, of_quantizers, accepted=True)
        if structure.sinks:
            structure.sinks.update(manifest.get("sinks"))
    except InputError as error:
        raise InputError(f"artifact {str(path)!r} is broken: {error}") from error
    weights: StoredTensors | CompressedTensors = stored
    if told:
        where = f"artifact {str(path)!r}"
        weights = CompressedTensors(stored.shards, coded_layers(model), told, where)
    put_transforms(structure, weights, folder)
    loaded = Artifact(model, None, manifest, structure)
    if packed:
        loaded.packed = fill_packed(model, structure, weights, quantizers, folder, place)
    else:
        held = dict(weights)
        check_finite(held.items(), f"artifact {str(path)!r}")
        fill(model, held | quantizers, folder)
        check_bounds(model, f"artifact {str(path)!r}")
    model.requires_grad_(False).to(place)
    structure.enable(True)
    loaded.processor = held_by.load_processor()
    if packed or told:
        save_as_copy(model, folder)
    else:
        kinds = {n: w.dtype for n, w in shapes.items() if w.is_floating_point()}
        save_as_artifact(model, loaded.processor, manifest, kinds)
    return loaded


def load(
    path: str | Path,
    family: type[HubFamily] | None = None,
    simulate: bool = False,
    device: torch.device | str = "cpu",
    head_bits: int | None = None,
) -> tuple[nn.Module, Any]:
    """Return the quantized model of an artifact, in ``eval()`` mode, and its processor.

    Args:
        path: an ``artifact/`` folder, or a repository of the hub such as ``owner/name``.
        family: class of the model's family, where it is none of this package.
        simulate: hold weights in their floating type and fake-quantize them and the inputs; by
            default weights are packed codes, and kernels compute with them. Answers of the two
            differ by rounding (docs/packed.md).
        device: where the model goes; a packed model cannot be moved later.
        head_bits: round the output head to so many bits, 2 to 8, one scale per word; by default it
            stays as it was exported.

    Raises:
        InputError: see :func:`load_artifact`; or another width of the head.
    """
    check_head_bits(head_bits)
    artifact = load_artifact(path, family, packed=not simulate, device=device)
    if head_bits is not None:
        quantize_head(artifact.model, head_bits, artifact.packed)
    return artifact.model, artifact.processor


def _device(named: torch.device | str) -> torch.device:
    """Return a device that is there."""
    try:
        device = torch.device(named)
    except RuntimeError as error:
        raise InputError(f"device {str(named)!r} is not known; allowed: cpu, cuda") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if (device.index or 0) >= there.get(device.type, 0):
        allowed = ", ".join(name for name, count in there.items() if count)
        raise InputError(f"device {str(named)!r} is not there; allowed: {allowed}")
    return device


def family_read_by(
    manifest: Mapping[str, Any], model_type: str, given: type[HubFamily] | None
) -> type[HubFamily]:
    """Return the family that reads an artifact.

    Args:
        manifest: names it by ``read_by``; earlier ones by a class path, of which only those of this
            package are looked at.
        model_type: of the artifact's configuration.
        given: a class that the caller trusts, for a family that is none of this package.

    Raises:
        InputError: the artifact needs a family that was not given.
    """
    named = manifest.get("read_by", manifest.get("class_path"))
    if given is not None and named in (None, family_name(given), _path_of(given)):
        return given
    if named is None:
        return family_for(model_type)
    own = re.fullmatch(r"(?:qvlm_lightning\.models\.)?(\w+)(?:\.\w+)?", str(named))
    if own is None or own[1] not in known():
        raise InputError(
            f"its family is {str(named)[:100]!r}, which is none of this package; if you trust that "
            "class, give it: load(path, family=...)"
        )
    return family_for(own[1])


def _path_of(family: type) -> str:
    return f"{family.__module__}.{family.__qualname__}"


def _present_name(name: str) -> str:
    """Return the name of a quantizer's tensor of format 1 in format 2."""
    path, _, own = name.rpartition(".")
    return f"{path}.weight_quantizer.{own}" if own == "clip_ratio" else name


def _read(folder: Path, name: str, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(folder / name)
    except (ValueError, SafetensorError) as error:  # wrong JSON and wrong UTF-8 are ValueErrors
        reason = first_line(error)
        raise InputError(f"artifact {str(folder)!r} is broken: {name}: {reason}") from error


def _read_object(path: Path) -> dict[str, Any]:
    value = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise InputError(f"a JSON object is needed, not {type(value).__name__}")
    return value


def _family(
    folder: Path, manifest: dict[str, Any], model_type: str, given: type[HubFamily] | None
) -> HubFamily:
    """Return the family that an artifact names; nothing is imported because a file says so."""
    try:
        found = family_read_by(manifest, model_type, given)
        found.check_type(model_type, "it")
    except InputError as error:
        raise InputError(f"artifact {str(folder)!r} cannot be read: {error}") from error
    return found(str(folder))


def _empty_model(family: HubFamily, types: TensorTypes, without_values: bool) -> nn.Module:
    """Return the model of the folder in the types of an artifact and in ``eval()`` mode."""
    try:
        build = partial(family.empty_model, types.default)
        model: nn.Module = without_weights(build, family.path) if without_values else build()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise InputError(f"artifact {family.path!r} is broken: {CONFIG}: {reason}") from error
    for name, parameter in model.named_parameters():
        if name in types.others:
            parameter.data = parameter.data.to(types.others[name])
    vars(model.config).pop("quantization_config", None)  # for other programs: they read the codes
    return model.eval()

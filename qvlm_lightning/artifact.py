"""The exported folder: a model's configuration and processor, its weights, and the quantizers.

It saves no memory yet: weights stay in their floating type and are quantized when the model runs.
So no other program may take them for the quantized model: their file has a name that nobody else
looks for, and loading the folder elsewhere fails instead of giving full precision.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qvlm_lightning.errors import InputError, first_line
from qvlm_lightning.finite import check_finite
from qvlm_lightning.models.find import class_at, family_for
from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.models.saved import save_settings
from qvlm_lightning.nn.adapters import merged_tensors
from qvlm_lightning.nn.calibrated import is_learned_beside, is_quantizer_tensor
from qvlm_lightning.nn.finite import check_bounds
from qvlm_lightning.nn.sinks import SinkOutput
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.nn.weight_quantizer import WeightQuantizer
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.exported import (
    CONFIG,
    FORMAT,
    MANIFEST,
    QUANTIZERS,
    READABLE,
    WEIGHTS,
    check_hashes,
    check_there,
    sha256_of,
    weights_file,
)
from qvlm_lightning.weights.shards import write_shard
from qvlm_lightning.weights.streamed import StreamedWeights


@dataclass
class Artifact:
    """A loaded artifact.

    Attributes:
        model: quantized model, quantizers on.
        processor: its processor.
        manifest: method, scheme, activation_mode, seed, calibration_ids, percentiles, partition,
            versions ...
        structure: towers, units and sites.
    """

    model: nn.Module
    processor: Any
    manifest: dict[str, Any]
    structure: Structure


def save_artifact(
    folder: Path,
    model: Any,
    processor: Any,
    manifest: dict[str, Any],
    weights: StreamedWeights | None = None,
) -> None:
    """Write the artifact; the folder appears as a whole or not at all.

    Args:
        folder: replaced if it exists.
        model: quantized model, left as it is; what its adapters learned is stored in the weights.
        processor: saved beside it.
        manifest: plain JSON values.
        weights: of a model without any; they are copied one by one.

    Raises:
        InputError: a weight or a bound is NaN or infinite, or a range is upside down.
    """
    import shutil

    check_bounds(model, "the calibrated model")
    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    config = model.config.to_dict()
    if weights is None:
        quantizers, plain = split_state(model)
        check_finite(plain.items(), "the calibrated model")
        save_file(plain, scratch / WEIGHTS, metadata={"format": "pt"})
    else:
        quantizers = copy_weights(scratch / WEIGHTS, model, weights)
    save_file(quantizers, scratch / QUANTIZERS)
    files = {}
    for name in (WEIGHTS, QUANTIZERS):
        (scratch / name).chmod(0o644)  # safetensors lets nobody else read
        files[name] = sha256_of(scratch / name)
    save_settings(scratch, model, processor)
    own = {"format": FORMAT, "files": files, "model_type": config.get("model_type")}
    text = json.dumps(manifest | own, indent=1)
    (scratch / MANIFEST).write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.replace(folder)


def split_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return (quantizer tensors, weights) of a quantized model, by their names in it; ties are kept
    once.
    """
    quantizers: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in (model.state_dict() | merged_tensors(model)).items():
        place = value.data_ptr()  # of the model's own tensor: copies are never in the same place
        value = value.detach().cpu().contiguous()
        if is_quantizer_tensor(name):
            quantizers[name] = value
        elif not is_learned_beside(name) and (place not in seen or value.numel() == 0):
            seen.add(place)
            weights[name] = value
    return quantizers, weights


def copy_weights(path: Path, model: nn.Module, weights: StreamedWeights) -> dict[str, Tensor]:
    """Write the weights of a quantized model that has none, one after another, and return its
    quantizer tensors; the file is that of the model in memory, byte for byte.
    """
    quantizers: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    with weights.held(_changed(model)):
        merged = merged_tensors(model)
    for name, value in (model.state_dict(keep_vars=True) | merged).items():
        if is_quantizer_tensor(name):
            quantizers[name] = value.detach().cpu().contiguous()
        elif not is_learned_beside(name) and id(value) not in seen:  # ties are kept once
            seen.add(id(value))
            plain[name] = value

    def read(name: str) -> Tensor:
        return weights.read(name) if plain[name].is_meta else plain[name]

    write_shard(path, {n: (v.dtype, tuple(v.shape)) for n, v in plain.items()}, read)
    return quantizers


def _changed(model: nn.Module) -> list[str]:
    """Return the parameters that adapters change."""
    named = [name for name, m in model.named_modules() if getattr(m, "adapter", None) is not None]
    owners = [(name, model.get_submodule(name)) for name in named]
    return [f"{name}.{own}" for name, m in owners for own in m._parameters]


def load_artifact(path: str | Path) -> Artifact:
    """Load what :func:`save_artifact` wrote.

    Raises:
        InputError: the folder is not an artifact, is incomplete or broken, or is of another format
            version; a weight or a bound is NaN or infinite, or a range is upside down.
    """
    folder = Path(path)
    check_there(folder, MANIFEST, QUANTIZERS, CONFIG)
    manifest, config = (_read(folder, name, _read_object) for name in (MANIFEST, CONFIG))
    if manifest.get("format") not in READABLE:
        allowed = ", ".join(map(str, READABLE))
        raise InputError(
            f"artifact {str(path)!r} has format {manifest.get('format')}; allowed: {allowed}"
        )
    names = weights_file(manifest), QUANTIZERS
    check_there(folder, *names)
    check_hashes(folder, manifest, names)
    weights, quantizers = (_read(folder, name, load_file) for name in names)
    if manifest["format"] == 1:
        quantizers = {_present_name(name): value for name, value in quantizers.items()}
    family = _family(folder, manifest, str(config.get("model_type")))
    model = _empty_model(family, weights)
    try:
        scheme = Scheme.from_dict(manifest.get("scheme"))
        structure = quantize_model(model, family, scheme, accepted=True)
        if structure.sinks:
            structure.sinks.update(manifest.get("sinks"))
    except InputError as error:
        raise InputError(f"artifact {str(path)!r} is broken: {error}") from error
    check_finite(weights.items(), f"artifact {str(path)!r}")
    _fill(model, weights | quantizers, folder)
    check_bounds(model, f"artifact {str(path)!r}")
    model.requires_grad_(False)
    structure.enable(True)
    return Artifact(model, family.load_processor(), manifest, structure)


def load(path: str | Path) -> tuple[nn.Module, Any]:
    """Return the quantized model of an artifact, in ``eval()`` mode, and its processor.

    Args:
        path: an ``artifact/`` folder.

    Raises:
        InputError: see :func:`load_artifact`.
    """
    artifact = load_artifact(path)
    return artifact.model, artifact.processor


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
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise InputError(f"a JSON object is needed, not {type(value).__name__}")
    return value


def _family(folder: Path, manifest: dict[str, Any], model_type: str) -> HubFamily:
    """Return the family that an artifact names; before it named one, its model type told."""
    try:
        named = manifest.get("class_path")
        found = family_for(model_type) if named is None else class_at(str(named))
        found.check_type(model_type, "it")
    except InputError as error:
        raise InputError(f"artifact {str(folder)!r} cannot be read: {error}") from error
    return found(str(folder))


def _empty_model(family: HubFamily, weights: dict[str, Tensor]) -> nn.Module:
    """Return the model of the folder in the types of ``weights`` and in ``eval()`` mode."""
    largest = max(weights.values(), key=Tensor.numel, default=torch.zeros(()))
    try:
        model = family.empty_model(largest.dtype)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise InputError(f"artifact {family.path!r} is broken: {CONFIG}: {reason}") from error
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.data = parameter.data.to(weights[name].dtype)
    return model.eval()


def _fill(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Copy the stored tensors into the model.

    Raises:
        InputError: one is missing (under all its names, if it is tied), too many or of another
            shape.
    """
    for name, module in model.named_modules():
        if isinstance(module, WeightQuantizer) and f"{name}.low" in tensors:
            module.hold_range()
        if isinstance(module, SinkOutput):
            outputs = model.get_submodule(name.rpartition(".")[0]).get_parameter("weight")
            shape = len(module.sinks.prefix), outputs.shape[0]
            module.hold(shape, outputs.dtype, outputs.device)
    state = model.state_dict(keep_vars=True)
    filled = {id(state[name]) for name in tensors if name in state}
    odd = [name for name in state if id(state[name]) not in filled]
    odd += [n for n, t in tensors.items() if n not in state or t.shape != state[n].shape]
    if odd:
        raise InputError(
            f"artifact {str(folder)!r} does not fit its own config, for example at {min(odd)}"
        )
    model.load_state_dict(tensors, strict=False)

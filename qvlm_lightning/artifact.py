"""The exported folder: an ordinary model folder plus the quantizers, in safetensors and JSON.

It saves no memory yet: weights stay in their floating type and are quantized when the model runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.nn.adapters import merge_adapters
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

MANIFEST, QUANTIZERS = "quantization.json", "quantizers.safetensors"
FORMAT = 1


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


def save_artifact(folder: Path, model: Any, processor: Any, manifest: dict[str, Any]) -> None:
    """Write the artifact; the folder appears as a whole or not at all.

    Args:
        folder: replaced if it exists.
        model: quantized model; learned adapters are merged into its weights.
        processor: saved beside it.
        manifest: plain JSON values.
    """
    import shutil

    scratch = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    merge_adapters(model)
    quantizers, weights = split_state(model)
    config = model.config.to_dict()
    save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
    save_file(quantizers, scratch / QUANTIZERS)
    processor.save_pretrained(scratch)
    model.config.save_pretrained(scratch)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(scratch)
    text = json.dumps(
        {"format": FORMAT, **manifest, "model_type": config.get("model_type")}, indent=1
    )
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
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        if "input_quantizer." in name or name.endswith(".clip_ratio"):
            quantizers[name] = value
        elif value.data_ptr() not in seen or value.numel() == 0:
            seen.add(value.data_ptr())
            weights[name] = value
    return quantizers, weights


def load_artifact(path: str | Path) -> Artifact:
    """Load what :func:`save_artifact` wrote.

    Raises:
        InputError: the folder is not an artifact, is incomplete, or is of another format version.
    """
    folder = Path(path)
    for name in (MANIFEST, QUANTIZERS, "model.safetensors", "config.json"):
        if not (folder / name).is_file():
            raise InputError(f"{str(path)!r} is not an artifact: it has no {name}")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        quantizers = load_file(folder / QUANTIZERS)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise InputError(
            f"artifact {str(path)!r} is broken: {str(error).splitlines()[0]}"
        ) from error
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"artifact {str(path)!r} has format {manifest.get('format')}; allowed: {FORMAT}"
        )
    family = Llava(str(folder))
    model = _empty_model(folder)
    structure = quantize_model(model, family, Scheme.from_dict(manifest["scheme"]))
    problems = model.load_state_dict(weights | quantizers, strict=False)
    tied = {n for n, p in model.state_dict(keep_vars=True).items() if _tied_to_other(model, n, p)}
    missing = set(problems.missing_keys) - tied
    if missing or problems.unexpected_keys:
        odd = min(missing or set(problems.unexpected_keys))
        raise InputError(
            f"artifact {str(path)!r} does not fit its own config, for example at {odd}"
        )
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


def _empty_model(folder: Path) -> nn.Module:
    """Return the model class of the folder with unset weights, in fp32 and ``eval()`` mode."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    return model.eval()


def _tied_to_other(model: nn.Module, name: str, parameter: Tensor) -> bool:
    return any(p is parameter and n != name for n, p in model.state_dict(keep_vars=True).items())

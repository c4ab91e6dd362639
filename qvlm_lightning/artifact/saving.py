"""Write an artifact: a model's configuration and processor, its weights, and the quantizers.

Quantized weights are packed codes, all others stay in their floating type. No other program may
take them for a model: their file has a name that nobody else looks for, and loading the folder
elsewhere fails.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.artifact.card import CARD, license_of, model_card
from qvlm_lightning.artifact.codes import (
    belongs_to,
    code_kinds,
    code_tensors,
    coded_layers,
    with_codes,
)
from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_json, write_whole, writing_folder
from qvlm_lightning.finite import check_finite
from qvlm_lightning.models.saved import save_settings
from qvlm_lightning.nn.adapters import merged_tensors
from qvlm_lightning.nn.calibrated import is_learned_beside, is_quantizer_tensor
from qvlm_lightning.nn.finite import check_bounds
from qvlm_lightning.tensor_files import put_tensors, write_shard
from qvlm_lightning.weights.exported import (
    FORMAT,
    MANIFEST,
    QUANTIZERS,
    WEIGHTS,
    named_types,
    sha256_of,
)
from qvlm_lightning.weights.streamed import StreamedWeights


def save_artifact(
    folder: Path,
    model: Any,
    processor: Any,
    manifest: dict[str, Any],
    weights: StreamedWeights | None = None,
    stored: Mapping[str, torch.dtype] | None = None,
) -> None:
    """Write the artifact; the folder appears as a whole or not at all.

    Args:
        folder: replaced if it exists.
        model: quantized model, left as it is; what its adapters learned is stored in the weights.
        processor: saved beside it.
        manifest: plain JSON values.
        weights: of a model without any; they are copied one by one.
        stored: types by name of weights that are stored in another type than the model's, without
            a change of value (``Structure.stored``).

    Raises:
        InputError: a weight or a bound is NaN or infinite, a range is upside down, or the system
            refuses to write; the folder is what it was.
    """
    check_bounds(model, "the calibrated model")
    with writing_folder(folder) as scratch:
        if weights is None:
            quantizers, plain = split_state(model)
            types = {name: value.dtype for name, value in plain.items()}
            check_finite(plain.items(), "the calibrated model")
            quantizers, plain = with_codes(model, quantizers, plain)
            plain = {n: x.to((stored or {}).get(n, x.dtype)) for n, x in plain.items()}
            put_tensors(scratch / WEIGHTS, plain)
        else:
            quantizers, types = copy_weights(scratch / WEIGHTS, model, weights, stored or {})
        put_tensors(scratch / QUANTIZERS, quantizers, metadata=None)
        save_settings(scratch, model, processor)
        own = {
            "format": FORMAT,
            "files": {name: sha256_of(scratch / name) for name in (WEIGHTS, QUANTIZERS)},
            "model_type": model.config.to_dict().get("model_type"),
            "computed_in": named_types(types),
        }
        write_json(scratch / MANIFEST, manifest | own)
        base = str(manifest.get("path") or getattr(model.config, "_name_or_path", "") or "a model")
        write_whole(scratch / CARD, model_card(manifest, base, license_of(Path(base))))


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


def copy_weights(
    path: Path, model: nn.Module, weights: StreamedWeights, stored: Mapping[str, torch.dtype]
) -> tuple[dict[str, Tensor], dict[str, torch.dtype]]:
    """Write the weights of a quantized model that has none, one after another, and return its
    quantizer tensors and the types of the weights in the model; the file is that of the model in
    memory, byte for byte.
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

    layers = coded_layers(model)
    coded = {own: name for name, x in layers.items() for own in code_kinds(name, x)}

    def whole(name: str) -> Tensor:
        return weights.read(name) if plain[name].is_meta else plain[name]

    def read(name: str) -> Tensor:
        if name in coded:
            layer = coded[name]
            return code_tensors(layer, layers[layer], whole(f"{layer}.weight"))[name]
        value = whole(name)
        return value.to(stored.get(name, value.dtype))

    kinds = {n: (stored.get(n, v.dtype), tuple(v.shape)) for n, v in plain.items()}
    kinds = {n: kind for n, kind in kinds.items() if belongs_to(n, layers) is None}
    for name, linear in layers.items():
        kinds |= code_kinds(name, linear)
    write_shard(path, kinds, read)
    quantizers = {n: x for n, x in quantizers.items() if belongs_to(n, layers) is None}
    return quantizers, {name: value.dtype for name, value in plain.items()}


def _changed(model: nn.Module) -> list[str]:
    """Return the parameters that adapters change."""
    named = [name for name, m in model.named_modules() if getattr(m, "adapter", None) is not None]
    owners = [(name, model.get_submodule(name)) for name in named]
    return [f"{name}.{own}" for name, m in owners for own in m._parameters]


def save_as_artifact(
    model: Any, processor: Any, manifest: dict[str, Any], stored: Mapping[str, torch.dtype]
) -> None:
    """Let ``model.save_pretrained(folder)`` write the artifact: what transformers would write is
    the full-precision model, or nothing that loads.

    Args:
        model: quantized model.
        processor: saved beside it.
        manifest: of the artifact.
        stored: see :func:`save_artifact`.
    """

    def save_pretrained(save_directory: str | Path, **unused: Any) -> None:
        if unused:
            given = ", ".join(map(str, unused))
            raise InputError(
                f"save_pretrained of a quantized model was given {given}; allowed is a folder"
            )
        save_artifact(Path(save_directory), model, processor, manifest, stored=stored)

    model.save_pretrained = save_pretrained


def save_as_copy(model: Any, artifact: Path) -> None:
    """Let ``model.save_pretrained(folder)`` of a packed model copy its artifact, which holds all
    that the model was made from.

    Args:
        model: packed.
        artifact: folder it was loaded from.
    """

    def save_pretrained(save_directory: str | Path, **unused: Any) -> None:
        if unused:
            given = ", ".join(map(str, unused))
            raise InputError(
                f"save_pretrained of a quantized model was given {given}; allowed is a folder"
            )
        if not artifact.is_dir():
            raise InputError(f"{str(artifact)!r}, from which the packed model was loaded, is gone")
        with writing_folder(Path(save_directory)) as scratch:
            for file in artifact.iterdir():
                if file.is_file():
                    shutil.copy2(file, scratch / file.name)

    model.save_pretrained = save_pretrained

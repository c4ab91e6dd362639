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
from qvlm_lightning.artifact.stored import Stored, stored_tensors
from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_json, write_whole, writing_folder
from qvlm_lightning.models.saved import save_settings
from qvlm_lightning.nn.finite import check_bounds
from qvlm_lightning.tensor_files import put_tensors, write_shard
from qvlm_lightning.weights.exported import (
    FORMAT,
    MANIFEST,
    WEIGHTS,
    is_weights_file,
    named_types,
    quantizers_file,
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
    found = stored_tensors(model, weights, stored)
    base = base_of(manifest, model)
    with writing_folder(folder) as scratch:
        write_shard(scratch / WEIGHTS, found.kinds, found.read)
        save_settings(scratch, model, processor)
        write_manifest(scratch, manifest | {"format": FORMAT}, found, model)
        write_whole(scratch / CARD, model_card(manifest, base, license_of(Path(base))))


def write_manifest(scratch: Path, manifest: Mapping[str, Any], found: Stored, model: Any) -> None:
    """Write quantizers and manifest beside the weights of an artifact.

    Args:
        scratch: folder with the weights.
        manifest: plain JSON values; its format says what the files are called.
        found: of the model.
        model: quantized model.
    """
    quantizers = quantizers_file(manifest)
    put_tensors(scratch / quantizers, found.quantizers, metadata=None)
    weights = [file.name for file in scratch.iterdir() if is_weights_file(file.name, manifest)]
    own = {
        "files": {name: sha256_of(scratch / name) for name in (*sorted(weights), quantizers)},
        "model_type": model.config.to_dict().get("model_type"),
        "computed_in": named_types(found.types),
    }
    write_json(scratch / MANIFEST, {**manifest, **own})


def base_of(manifest: Mapping[str, Any], model: Any) -> str:
    """Return name or folder of the full-precision model.

    Args:
        manifest: of the artifact.
        model: quantized model.
    """
    return str(manifest.get("path") or getattr(model.config, "_name_or_path", "") or "a model")


def copy_weights(
    path: Path, model: nn.Module, weights: StreamedWeights, stored: Mapping[str, torch.dtype]
) -> tuple[dict[str, Tensor], dict[str, torch.dtype]]:
    """Write the weights of a quantized model that has none, one after another, and return its
    quantizer tensors and the types of the weights in the model; the file is that of the model in
    memory, byte for byte.
    """
    found = stored_tensors(model, weights, stored)
    write_shard(path, found.kinds, found.read)
    return found.quantizers, found.types


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

"""Export to compressed-tensors, which vLLM serves and transformers loads without this package.

Every tensor is written from codes and scales; no model of the other program is built or run, whose
saving writes dense weights, and ignore lists that match nothing after transformers has renamed the
modules.

Shapes: O outputs, I inputs, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.artifact import Artifact, Stored, stored_tensors
from qvlm_lightning.artifact.card import CARD, license_of, model_card
from qvlm_lightning.artifact.compressed import compressed_kinds, to_compressed
from qvlm_lightning.artifact.saving import base_of, write_manifest
from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.export.card import export_card, how_to_use
from qvlm_lightning.export.compressed_config import (
    INT,
    formats_of,
    notes_on,
    notes_on_parts,
    quantization_config,
)
from qvlm_lightning.export.exported import Export
from qvlm_lightning.export.layers import Layer, LayerScheme, layers_of
from qvlm_lightning.export.plain import plain_model
from qvlm_lightning.export.shards import Planned, write_shards
from qvlm_lightning.files import write_json, write_whole, writing_folder
from qvlm_lightning.models.saved import save_settings
from qvlm_lightning.models.weight_map import stored_names
from qvlm_lightning.nn.finite import check_bounds
from qvlm_lightning.weights.exported import COMPRESSED
from qvlm_lightning.weights.streamed import StreamedWeights

SHARD_BYTES = 5 * 1000**3


def export_compressed_tensors(
    artifact: Artifact, output: Path, source: Path, shard_bytes: int = SHARD_BYTES
) -> Export:
    """Write a folder that transformers and vLLM load.

    Args:
        artifact: loaded, quantizers on.
        output: new folder; it appears as a whole or not at all.
        source: folder of the artifact, whose card has license and results.
        shard_bytes: most bytes of a file of weights.

    Raises:
        InputError: compressed-tensors cannot hold the artifact.
    """
    content = _content(artifact, stored_tensors(artifact.model, None, artifact.structure.stored))
    with writing_folder(output) as scratch:
        config = _write(scratch, artifact, content, shard_bytes)
        done = content.told
        text = export_card(source, artifact.manifest, done.schemes, done.notes, config)
        write_whole(scratch / CARD, text)
    return content.told


def save_compressed(
    folder: Path, artifact: Artifact, weights: StreamedWeights | None = None
) -> None:
    """Write an artifact in the layout of compressed-tensors: other programs load it, and this
    package reads the same files; the folder appears as a whole or not at all.

    Args:
        folder: replaced if it exists.
        artifact: what a calibration made, quantizers on.
        weights: of a model without any; they are read one by one.

    Raises:
        InputError: compressed-tensors cannot hold the artifact, or see
            :func:`~qvlm_lightning.artifact.save_artifact`; the folder is what it was.
    """
    model, manifest = artifact.model, artifact.manifest | {"format": COMPRESSED}
    check_bounds(model, "the calibrated model")
    found = stored_tensors(model, weights, artifact.structure.stored)
    content = _content(artifact, found)
    base = base_of(manifest, model)
    with writing_folder(folder) as scratch:
        config = _write(scratch, artifact, content, SHARD_BYTES)
        write_manifest(scratch, manifest, found, model)
        use = how_to_use(content.told.schemes, content.told.notes, config)
        write_whole(scratch / CARD, model_card(manifest, base, license_of(Path(base)), use))


def check_model(model: Any) -> None:
    """Refuse a model that transformers alone cannot load, before it is calibrated.

    Args:
        model: in full precision.

    Raises:
        InputError: see :func:`~qvlm_lightning.export.plain.plain_model`.
    """
    stored_names(plain_model(model, set(model.state_dict())))


@dataclass(frozen=True)
class _Content:
    """What a folder holds: its tensors by name, its settings, and what to say of it."""

    tensors: dict[str, Planned]
    settings: dict[str, Any]
    told: Export


def _content(artifact: Artifact, found: Stored) -> _Content:
    layers = layers_of(artifact, "compressed-tensors")
    plain = plain_model(artifact.model, set(found.types))
    names = stored_names(plain)
    formats = formats_of(layers)
    tensors = _planned(layers, formats, found, names)
    notes = [note for scheme, held in formats.items() for note in notes_on(scheme, held)]
    notes += notes_on_parts(layers)
    told = Export(
        len(layers),
        [f"{scheme.name}: {held}" for scheme, held in formats.items()],
        list(dict.fromkeys(notes)),
        sum(one.nbytes for one in tensors.values()),
    )
    return _Content(tensors, quantization_config(layers, formats, plain, names), told)


def _write(
    scratch: Path, artifact: Artifact, content: _Content, shard_bytes: int
) -> dict[str, Any]:
    """Write all that other programs read and return the model's configuration."""
    save_settings(scratch, artifact.model, artifact.processor)
    _image_settings(scratch)
    config = _model_config(artifact.model, content.settings)
    write_json(scratch / "config.json", config)
    write_shards(scratch, content.tensors, shard_bytes)
    return config


def _planned(
    layers: Sequence[Layer],
    formats: Mapping[LayerScheme, str],
    found: Stored,
    names: Mapping[str, str],
) -> dict[str, Planned]:
    """Return every tensor of the files by its name there, in the order of the model."""
    quantized = {f"{layer.name}.weight": layer for layer in layers}
    planned: dict[str, Planned] = {}
    for name in found.types:
        if name in quantized:
            layer = quantized[name]
            own = _layer_tensors(layer, formats[layer.scheme] != INT, found)
            stored = names[name].removesuffix(".weight")
            planned |= {f"{stored}.{end}": x for end, x in own.items()}
        else:
            planned[names[name]] = Planned(*found.kinds[name], partial(found.read, name))
    return planned


def _layer_tensors(layer: Layer, packed: bool, found: Stored) -> dict[str, Planned]:
    """Return the tensors of a quantized layer by the ends of their names."""

    def read(own: str) -> Tensor:
        return found.read(f"{layer.name}.{own}")

    if f"{layer.name}.codes" not in found.kinds:
        raise InputError(
            f"{layer.name}: compressed-tensors cannot hold a quantized layer whose weight is that "
            "of another module too; the nearest that it holds is a scheme that names it in ignore"
        )
    linear = layer.linear
    tensors = {
        end: Planned(*kind, partial(to_compressed, end, linear, packed, read))
        for end, kind in compressed_kinds(linear, packed).items()
    }
    if layer.scheme.activation_bits is not None and not layer.scheme.dynamic:
        kind = linear.weight.dtype
        tensors["input_scale"] = Planned(kind, (1,), lambda: layer.static_input()[0].to(kind))
        tensors["input_zero_point"] = Planned(torch.int8, (1,), lambda: layer.static_input()[1])
    return tensors


def _model_config(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = model.config.to_dict()
    kinds = {str(p.dtype).partition(".")[2] for p in model.parameters() if p.is_floating_point()}
    main = str(model.dtype).partition(".")[2]
    return config | {
        "architectures": [type(model).__name__],
        "dtype": main if main in kinds else min(kinds),
        "quantization_config": settings,
    }


def _image_settings(folder: Path) -> None:
    """Write settings of images in a file of their own too, where older programs look, and where
    transformers finds those of a video processor that has none.
    """
    whole = parse_json((folder / "processor_config.json").read_text(encoding="utf-8"))
    own = folder / "preprocessor_config.json"
    if "image_processor" in whole and not own.exists():
        named = {"processor_class": whole.get("processor_class")}
        write_json(own, whole["image_processor"] | named)

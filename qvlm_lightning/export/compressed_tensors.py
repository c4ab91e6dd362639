"""Export to compressed-tensors, which vLLM serves and transformers loads without this package.

Every tensor is written from codes and scales; no model of the other program is built or run, whose
saving writes dense weights, and ignore lists that match nothing after transformers has renamed the
modules.

Shapes: O outputs, I inputs, G groups.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.artifact import Artifact, split_state
from qvlm_lightning.artifact.card import CARD
from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.export.card import export_card
from qvlm_lightning.export.compressed_config import (
    INT,
    formats_of,
    notes_on,
    notes_on_parts,
    quantization_config,
)
from qvlm_lightning.export.exported import Export
from qvlm_lightning.export.layers import Layer, LayerScheme, layers_of
from qvlm_lightning.export.plain import plain_model, stored_names
from qvlm_lightning.export.shards import Planned, write_shards
from qvlm_lightning.files import write_json, write_whole, writing_folder
from qvlm_lightning.models.saved import save_settings


def export_compressed_tensors(
    artifact: Artifact,
    output: Path,
    source: Path,
    shard_bytes: int = 5 * 1000**3,
) -> Export:
    """Write a folder that transformers and vLLM load.

    Args:
        artifact: loaded, quantizers on.
        output: new folder; it appears as a whole or not at all.
        source: folder of the artifact, whose card has license and results.
        shard_bytes: most bytes of a file of weights.

    Raises:
        InputError: compressed-tensors cannot hold the artifact, or is not installed.
    """
    check_installed()
    layers = layers_of(artifact, "compressed-tensors")
    _, weights = split_state(artifact.model)
    plain = plain_model(artifact.model, set(weights))
    names = stored_names(plain)
    formats = formats_of(layers)
    settings = quantization_config(layers, formats, plain, names)
    planned = _planned(layers, formats, weights, names, artifact.structure.stored)
    notes = [note for scheme, held in formats.items() for note in notes_on(scheme, held)]
    notes += notes_on_parts(layers)
    done = Export(
        len(layers),
        [f"{scheme.name}: {held}" for scheme, held in formats.items()],
        list(dict.fromkeys(notes)),
        sum(one.nbytes for one in planned.values()),
    )
    with writing_folder(output) as scratch:
        save_settings(scratch, artifact.model, artifact.processor)
        _image_settings(scratch)
        config = _model_config(artifact.model, settings)
        write_json(scratch / "config.json", config)
        write_shards(scratch, planned, shard_bytes)
        text = export_card(source, artifact.manifest, done.schemes, done.notes, config)
        write_whole(scratch / CARD, text)
    return done


def check_installed() -> None:
    """Refuse to start without the package that defines the format.

    Raises:
        InputError: it is missing.
    """
    try:
        import compressed_tensors  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--format compressed-tensors needs the package compressed-tensors; install "
            "'qvlm-lightning[export]'"
        ) from error


def _planned(
    layers: Sequence[Layer],
    formats: Mapping[LayerScheme, str],
    weights: Mapping[str, Tensor],
    names: Mapping[str, str],
    stored: Mapping[str, torch.dtype],
) -> dict[str, Planned]:
    """Return every tensor of the files by its name there, in the order of the model."""
    quantized = {f"{layer.name}.weight": layer for layer in layers}
    planned: dict[str, Planned] = {}
    for name, value in weights.items():
        if name in quantized:
            layer = quantized[name]
            own = _layer_tensors(layer, formats[layer.scheme])
            planned |= {f"{_stored(layer.name, names)}.{end}": x for end, x in own.items()}
        else:
            kind = stored.get(name, value.dtype)
            planned[names[name]] = Planned(kind, tuple(value.shape), _as_type(value, kind))
    return planned


def _layer_tensors(layer: Layer, held: str) -> dict[str, Planned]:
    """Return the tensors of a quantized layer by the ends of their names."""
    outputs, inputs = layer.linear.weight.shape
    groups = layer.linear.weight_quantizer.shape[1]
    bits, kind = layer.scheme.weight_bits, layer.linear.weight.dtype
    ranges = (outputs, groups)
    tensors = {"weight_scale": Planned(kind, ranges, lambda: layer.qparams()[0].to(kind))}
    if held == INT:
        tensors["weight"] = Planned(torch.int8, (outputs, inputs), layer.codes)
        if not layer.scheme.symmetric:
            tensors["weight_zero_point"] = Planned(torch.int8, ranges, lambda: layer.qparams()[1])
    else:
        shape = torch.tensor([outputs, inputs])
        columns, rows = ceil(inputs * bits / 32), ceil(outputs * bits / 32)
        tensors["weight_packed"] = Planned(
            torch.int32, (outputs, columns), lambda: packed(layer.codes(), bits)
        )
        tensors["weight_shape"] = Planned(torch.int64, (2,), lambda: shape)
        if not layer.scheme.symmetric:
            tensors["weight_zero_point"] = Planned(
                torch.int32, (rows, groups), lambda: packed(layer.qparams()[1], bits, along=0)
            )
    if layer.scheme.activation_bits is not None and not layer.scheme.dynamic:
        tensors["input_scale"] = Planned(kind, (1,), lambda: layer.static_input()[0].to(kind))
        tensors["input_zero_point"] = Planned(torch.int8, (1,), lambda: layer.static_input()[1])
    return tensors


def packed(codes: Tensor, bits: int, along: int = 1) -> Tensor:
    """Return signed codes packed without gaps into int32 words.

    Args:
        codes: [rows, columns] int8.
        bits: of a code.
        along: dimension whose codes share words.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    words: Tensor = pack_to_int32(codes, bits, packed_dim=along)
    return words


def _as_type(value: Tensor, kind: torch.dtype) -> Callable[[], Tensor]:
    return lambda: value.to(kind)


def _stored(layer: str, names: Mapping[str, str]) -> str:
    """Return the name of a layer in the files."""
    return names[f"{layer}.weight"].removesuffix(".weight")


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

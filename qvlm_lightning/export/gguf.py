"""Export of the decoder to GGUF, which llama.cpp runs: the base file with our codes in place.

Tokenizer, metadata and what is not quantized come from the base, which llama.cpp's own converter
made of the same model. Tower and projector are not in such a file.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qvlm_lightning.artifact import Artifact, split_state
from qvlm_lightning.errors import InputError
from qvlm_lightning.export.exported import Export
from qvlm_lightning.export.gguf_base import Base
from qvlm_lightning.export.gguf_blocks import block_type, blocks, half_scales
from qvlm_lightning.export.layers import Layer, layers_of
from qvlm_lightning.files import writing_folder

_ALIGNMENT = "general.alignment"
_OWN_KEYS = ("general.architecture", "general.file_type", "general.quantization_version")


@dataclass(frozen=True)
class _Tensor:
    """A tensor to write: its type and shape in the file, and what makes its bytes."""

    kind: str
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]


def export_gguf(artifact: Artifact, output: Path, base: Path) -> Export:
    """Write a folder with the GGUF file of the decoder.

    Args:
        artifact: loaded, quantizers on.
        output: new folder; it appears as a whole or not at all.
        base: full-precision file of the same decoder.

    Raises:
        InputError: GGUF cannot hold the artifact, the base is missing or of another model, or the
            package gguf is missing.
    """
    check_installed()
    layers = layers_of(artifact, "gguf")
    if not layers:
        raise InputError(
            "gguf holds the decoder, of which this artifact quantizes nothing; the nearest that it "
            "holds is a scheme with language.weight_bits below 16"
        )
    config: Any = artifact.model.config
    opened = Base(base, config.get_text_config())
    tensors = _tensors(artifact, layers, opened)
    kinds = Counter(tensor.kind for tensor in tensors.values())
    main = block_type(layers[0].scheme.weight_bits, layers[0].scheme.symmetric)
    file = f"model-{main.lower()}.gguf"
    with writing_folder(output) as scratch:
        _write(scratch / file, tensors, opened, main)
        nbytes = (scratch / file).stat().st_size
    counted = ", ".join(f"{count} tensors {kind}" for kind, count in kinds.most_common())
    return Export(len(layers), [f"{file}: {counted}"], _notes(artifact), nbytes)


def check_installed() -> None:
    """Refuse to start without the package that reads and writes the format.

    Raises:
        InputError: it is missing.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--format gguf needs the package gguf; install 'qvlm-lightning[export]'"
        ) from error


def _tensors(artifact: Artifact, layers: list[Layer], base: Base) -> dict[str, _Tensor]:
    """Return every tensor of the file, in the order of the base."""
    ours: dict[str, tuple[str, Tensor]] = {}
    for name, value in _decoder(artifact).items():
        told = base.name(name)
        if told is None or told not in base.tensors:
            raise InputError(f"--base {str(base.path)!r} is of another model: it has no {name}")
        if tuple(value.shape) != base.shape(told):
            raise InputError(
                f"--base {str(base.path)!r} is of another model: {told} has shape "
                f"{list(base.shape(told))}, this model's has {list(value.shape)}"
            )
        ours[told] = name, value
    quantized = {f"{layer.name}.weight": layer for layer in layers}
    prefix = _prefix(artifact)
    found = {}
    for told, tensor in base.tensors.items():
        if told in ours:
            name, value = ours[told]
            base.floating(told)
            layer = quantized.get(_full(name, prefix))
            if layer is None:
                found[told] = _floating(told, name, value, base)
            else:
                found[told] = _blocks(name, layer, base)
        elif told.startswith("rope_"):  # factors of the positions, from the converter
            found[told] = _Tensor(tensor.tensor_type.name, base.shape(told), _given(tensor.data))
        else:
            raise InputError(
                f"--base {str(base.path)!r} is of another model: this one has no {told}"
            )
    return found


def _decoder(artifact: Artifact) -> dict[str, Tensor]:
    """Return the weights of the decoder by their names in a language model alone."""
    prefix = _prefix(artifact)
    _, weights = split_state(artifact.model)
    return {
        name.replace(f"{prefix}.", "model.", 1): value
        for name, value in weights.items()
        if name.startswith((f"{prefix}.", "lm_head."))
    }


def _prefix(artifact: Artifact) -> str:
    first = artifact.structure.towers["language"].units[0].name
    return first.partition(".layers.")[0]


def _full(name: str, prefix: str) -> str:
    return name.replace("model.", f"{prefix}.", 1) if name.startswith("model.") else name


def _floating(told: str, name: str, value: Tensor, base: Base) -> _Tensor:
    """Return a tensor that is not quantized: the base's, or ours where a method has changed it.

    Raises:
        InputError: embeddings or output head differ, which no method changes here.
    """
    made = base.as_typed(told, base.stored(name, value))
    tensor = base.tensors[told]
    if told in ("token_embd.weight", "output.weight") and not base.holds(told, made):
        raise InputError(
            f"--base {str(base.path)!r} is of another model: its {told} has other values"
        )
    return _Tensor(tensor.tensor_type.name, base.shape(told), _given(made))


def _blocks(name: str, layer: Layer, base: Base) -> _Tensor:
    kind = block_type(layer.scheme.weight_bits, layer.scheme.symmetric)
    half_scales(
        layer.qparams()[0].float().numpy(), layer.name
    )  # refuses before anything is written

    def make() -> NDArray[np.uint8]:
        scale, zero_point = layer.qparams()
        each = layer.linear.in_features // scale.shape[1]
        steps = layer.codes().short() - zero_point.short().repeat_interleave(each, dim=1)
        # rows of codes, scales and zero points move together
        rows = base.stored(name, steps).numpy(), base.stored(name, scale).float().numpy()
        return blocks(kind, *rows, layer.name)

    return _Tensor(kind, tuple(layer.linear.weight.shape), make)


def _given(value: NDArray[Any]) -> Callable[[], NDArray[Any]]:
    return lambda: value


def _write(path: Path, tensors: Mapping[str, _Tensor], base: Base, main: str) -> None:
    """Write the file, one tensor in memory at a time."""
    import gguf

    writer = gguf.GGUFWriter(path, base.architecture)
    for field in base.reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in _OWN_KEYS:
            continue
        if field.name == _ALIGNMENT:
            writer.add_custom_alignment(int(field.contents()))
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{main}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[tensor.kind]
        row, size = gguf.GGML_QUANT_SIZES[kind]
        nbytes = int(np.prod(tensor.shape)) // row * size
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors.values():
        writer.write_tensor_data(tensor.make())
    writer.close()


def _notes(artifact: Artifact) -> list[str]:
    notes = ["llama.cpp rounds activations to 8 bits in its products: its text need not be ours"]
    if any(part != "language" for part in artifact.structure.quantized.values()):
        notes.append(
            "tower and projector are not in this file: llama.cpp runs them from an mmproj file in "
            "floating point, which its converter makes of some models (docs/export.md)"
        )
    return notes

"""The ``quantization_config`` of a folder in the compressed-tensors format."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from qvlm_lightning.export.layers import Layer, LayerScheme
from qvlm_lightning.export.patterns import patterns_for

INT, PACKED, MIXED = "int-quantized", "pack-quantized", "mixed-precision"


def formats_of(layers: Sequence[Layer]) -> dict[LayerScheme, str]:
    """Return the format of every scheme of the layers, in their order."""
    return held_as(list(dict.fromkeys(layer.scheme for layer in layers)))


def held_as(schemes: Sequence[LayerScheme]) -> dict[LayerScheme, str]:
    """Return the format of every scheme of a model.

    Weights below 8 bits are packed. Asymmetric ones are so only where transformers reads them
    (without quantized inputs, one scheme in the whole model); else they take a byte per code.
    """

    def held(scheme: LayerScheme) -> str:
        if scheme.activation_bits is None:
            return PACKED if scheme.symmetric or len(schemes) == 1 else INT
        return PACKED if scheme.weight_bits < 8 and scheme.symmetric else INT

    return {scheme: held(scheme) for scheme in schemes}


def quantization_config(
    layers: Sequence[Layer],
    formats: Mapping[LayerScheme, str],
    plain: nn.Module,
    names: Mapping[str, str],
) -> dict[str, Any]:
    """Return the ``quantization_config`` of ``config.json``.

    Args:
        layers: quantized ones.
        formats: of their schemes.
        plain: model of transformers, whose other Linear layers are to stay as they are.
        names: name of a weight in the model -> its name in the files.
    """
    linear = [name for name, module in plain.named_modules() if isinstance(module, nn.Linear)]

    namings = {name: (name, names[f"{name}.weight"].removesuffix(".weight")) for name in linear}

    def told_apart(own: list[str]) -> list[str]:
        others = [n for name in linear if name not in own for n in namings[name]]
        return patterns_for([namings[name] for name in own], others)

    quantized = {layer.name for layer in layers}
    groups = {}
    for index, (scheme, held) in enumerate(formats.items()):
        own = [layer.name for layer in layers if layer.scheme == scheme]
        targets = ["Linear"] if len(formats) == 1 else told_apart(own)
        groups[f"group_{index}"] = _group(scheme, held, targets)
    kinds = set(formats.values())
    found: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": kinds.pop() if len(kinds) == 1 else MIXED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": told_apart([name for name in linear if name not in quantized]),
        "config_groups": groups,
    }
    if any(not s.symmetric and held == PACKED for s, held in formats.items()):
        # transformers makes no place for packed zero points unless it unpacks weights on loading
        found["dequantize"] = True
    return found


def _group(scheme: LayerScheme, held: str, targets: list[str]) -> dict[str, Any]:
    inputs = None
    if scheme.activation_bits is not None:
        inputs = {
            "num_bits": scheme.activation_bits,
            "type": "int",
            "symmetric": scheme.dynamic,
            "strategy": "token" if scheme.dynamic else "tensor",
            "dynamic": scheme.dynamic,
        }
    weights: dict[str, Any] = {
        "num_bits": scheme.weight_bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "dynamic": False,
    }
    if scheme.group_size is not None:
        weights["group_size"] = scheme.group_size
    return {
        "targets": targets,
        "format": held,
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
    }


def notes_on(scheme: LayerScheme, held: str) -> list[str]:
    """Return what a user should know of a scheme."""
    notes = []
    if held == INT and scheme.weight_bits < 8:
        notes.append(
            f"{scheme.name}: a code takes a whole byte, because transformers does not read packed "
            "zero points here; weight_symmetric: true packs them"
        )
    served = served_by_vllm(scheme, held)
    if not served:
        notes.append(
            f"{scheme.name}: vLLM is not known to have a kernel for it; transformers loads it"
        )
    return notes


def scheme_in_vllm(scheme: LayerScheme, held: str) -> str | None:
    """Return the class that vLLM 0.33 chooses for a scheme, ``None`` where it refuses the model;
    tools/vllm_dispatch.py runs its own code.
    """
    bits, inputs = scheme.weight_bits, scheme.activation_bits
    if held == PACKED:
        if inputs is None:
            return "WNA16"
        return f"WNA{inputs}Int" if scheme.dynamic and inputs in (4, 8) else None
    channel = scheme.symmetric and scheme.group_size is None
    return "W8A8Int8" if bits == inputs == 8 and channel else None


def served_by_vllm(scheme: LayerScheme, held: str) -> bool:
    """Return whether vLLM 0.33 is known to have a kernel for a scheme (docs/export.md).

    It reads with compressed-tensors 0.17, which packs 3, 5, 6 and 7 bits with gaps; later versions,
    and these files, have none.
    """
    chosen = scheme_in_vllm(scheme, held)
    return chosen is not None and scheme.weight_bits in (4, 8)


def notes_on_parts(layers: Sequence[Layer]) -> list[str]:
    """Return what a user should know of single layers."""
    if any(layer.part != "language" and layer.scheme.dynamic for layer in layers):
        return [
            "where tower or projector are called with a matrix of all patches (the Qwen line), "
            "transformers measures one range of the whole matrix instead of one per token"
        ]
    return []

"""What an artifact stores of a quantized model: its weights, of which quantized ones are codes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.artifact.codes import (
    Kind,
    belongs_to,
    code_kinds,
    code_tensors,
    coded_layers,
)
from qvlm_lightning.finite import check_finite
from qvlm_lightning.nn.adapters import merged_tensors
from qvlm_lightning.nn.calibrated import is_learned_beside, is_quantizer_tensor
from qvlm_lightning.weights.streamed import StreamedWeights


@dataclass(frozen=True)
class Stored:
    """The tensors of an artifact; weights and codes are made when they are read.

    Attributes:
        kinds: type and shape of every weight and code by name.
        read: gives one of them.
        quantizers: ranges and all else that calibration decided, by name.
        types: of the weights in the model by their names there, ties once.
    """

    kinds: dict[str, Kind]
    read: Callable[[str], Tensor]
    quantizers: dict[str, Tensor]
    types: dict[str, torch.dtype]


def stored_tensors(
    model: Any,
    weights: StreamedWeights | None = None,
    stored: Mapping[str, torch.dtype] | None = None,
) -> Stored:
    """Return what is stored of a quantized model.

    Args:
        model: quantized; it stays as it is, and what its adapters learned is in the weights.
        weights: of a model without any; they are read one by one.
        stored: types by name of weights that are stored in another type than the model's, without
            a change of value (``Structure.stored``).

    Raises:
        InputError: a weight is NaN or infinite.
    """
    if weights is None:
        quantizers, plain = split_state(model)
        check_finite(plain.items(), "the calibrated model")
    else:
        quantizers, plain = _split_streamed(model, weights)
    layers = coded_layers(model)
    coded = {own: name for name, x in layers.items() for own in code_kinds(name, x)}

    def whole(name: str) -> Tensor:
        value = plain[name]
        return weights.read(name) if weights is not None and value.is_meta else value

    def read(name: str) -> Tensor:
        if name in coded:
            layer = coded[name]
            return code_tensors(layer, layers[layer], whole(f"{layer}.weight"))[name]
        return whole(name).to(held[name])

    held = {n: (stored or {}).get(n, x.dtype) for n, x in plain.items()}
    kinds = {
        n: (held[n], tuple(x.shape)) for n, x in plain.items() if belongs_to(n, layers) is None
    }
    for name, linear in layers.items():
        kinds |= code_kinds(name, linear)
    quantizers = {n: x for n, x in quantizers.items() if belongs_to(n, layers) is None}
    return Stored(kinds, read, quantizers, {name: x.dtype for name, x in plain.items()})


def split_state(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
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


def _split_streamed(
    model: Any, weights: StreamedWeights
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return :func:`split_state` of a model without weights, most of it on the meta device."""
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
    return quantizers, plain


def _changed(model: Any) -> list[str]:
    """Return the parameters that adapters change."""
    named = [name for name, m in model.named_modules() if getattr(m, "adapter", None) is not None]
    owners = [(name, model.get_submodule(name)) for name in named]
    return [f"{name}.{own}" for name, m in owners for own in m._parameters]

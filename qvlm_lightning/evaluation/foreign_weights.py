"""The model in full precision with weights that another tool has quantized and dequantized."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.errors import InputError, first_line
from qvlm_lightning.evaluation.module import VQAEvaluation
from qvlm_lightning.finite import check_finite
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import OFF, PARTS, Scheme
from qvlm_lightning.results.predictions import search_facts
from qvlm_lightning.results.variant import Variant


@dataclass(frozen=True)
class ForeignWeights:
    """What another tool has left."""

    file: Path
    """Safetensors file of weights [O, I], by the name of their module."""
    variant: Variant
    """What its row is called."""
    scheme: Scheme
    """What it was asked for."""
    program: str
    """Name and version of the tool."""


class ForeignEvaluation(VQAEvaluation):
    """Answers with weights of another tool; where activations are quantized, with quantizers of
    this package, which take the range of every token.

    Args:
        full: the evaluation of full precision, whose settings are taken.
        weights: what the tool has left.
    """

    def __init__(self, full: VQAEvaluation, weights: ForeignWeights) -> None:
        super().__init__(
            full.family,
            str(weights.file),
            full.max_new_tokens,
            full.stop,
            keep_log_probs=full.keep_log_probs,
        )
        self.weights = weights

    def _quantized(self, data: VQADataModule) -> nn.Module:
        model = self.family.load_model()
        self.base = self.family.fingerprint(model)
        try:
            given = load_file(self.weights.file)
        except (OSError, SafetensorError) as fault:
            file, reason = str(self.weights.file), first_line(fault)
            raise InputError(f"{file!r} cannot be read ({reason}); remove its folder") from fault
        put_weights(model, given)
        self._quantize_activations(model)
        told = self.weights.file.read_bytes() + repr(self.weights.scheme.identity()).encode()
        self.source = hashlib.sha256(told).hexdigest()[:16]
        self.variant = self.weights.variant
        self.search = search_facts({}) | {"program": self.weights.program}
        return model

    def _quantize_activations(self, model: nn.Module) -> None:
        scheme = activations_only(self.weights.scheme)
        if all(scheme.part(part).activation_bits == OFF for part in PARTS):
            return
        assert scheme.activation_mode == "dynamic_token", "refused before anything ran"
        quantize_model(model, self.family, scheme).enable(True)


def activations_only(scheme: Scheme) -> Scheme:
    """Return a scheme that leaves weights alone.

    Example:
        >>> activations_only(Scheme.parse("w4a8", activation_mode="dynamic_token")).name
        'w16a8'
    """
    parts: dict[str, Any] = {p: replace(scheme.part(p), weight_bits=OFF) for p in PARTS}
    return replace(scheme, **parts, group_size=None, target=None)


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Replace weights of a model.

    Args:
        model: changed in place; its types stay.
        weights: [O, I], by the name of their module.

    Raises:
        InputError: a name that no module has, another shape, or a value that is not finite.
    """
    known = dict(model.named_parameters())
    for name, weight in weights.items():
        found = known.get(f"{name}.weight")
        if found is None or found.shape != weight.shape:
            has = "no such weight" if found is None else f"one of shape {list(found.shape)}"
            raise InputError(
                f"the weight of {name!r}, shape {list(weight.shape)}, does not fit: the model has "
                f"{has}"
            )
    check_finite(weights.items(), "what another tool has left")
    for name, weight in weights.items():
        known[f"{name}.weight"].copy_(weight)

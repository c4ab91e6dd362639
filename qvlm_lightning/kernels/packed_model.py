"""A quantized model turned into a packed one, layer by layer."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qvlm_lightning.kernels.extension import extension
from qvlm_lightning.kernels.table import holding_of
from qvlm_lightning.kernels.torch_kernels import packed_of
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.packed_input import PackedInput
from qvlm_lightning.nn.packed_linear import (
    PackedLinear,
    packed_linear,
    transform_input,
    why_simulated,
)
from qvlm_lightning.nn.packed_site import SharedProduct
from qvlm_lightning.nn.packing import PackedWeight, packed_weight
from qvlm_lightning.nn.structure import Site, Structure
from qvlm_lightning.quant.scheme import OFF

WeightOf = Callable[[str, QuantLinear], PackedWeight]


@dataclass
class PackedModel:
    """What became of the quantized layers of a model.

    Attributes:
        layers: name -> packed layer.
        simulated: name -> why it stayed fake-quantized.
        refused: what the self-test of kernels refused, each once.
    """

    layers: dict[str, PackedLinear] = field(default_factory=dict)
    simulated: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def used(self) -> dict[str, int]:
        """Return kernel -> number of layers in which it has run."""
        return dict(Counter(name for layer in self.layers.values() for name in layer.used))

    def report(self) -> dict[str, Any]:
        """Return what became of every layer, in plain values: ``layers``, name -> layout, bits and
        the kernels that have run; ``simulated`` and ``refused`` as above.
        """
        layers = {
            name: {"layout": layer.layout, "bits": layer.bits, "kernels": list(layer.used)}
            for name, layer in self.layers.items()
        }
        return {"layers": layers, "simulated": self.simulated, "refused": self.refused}

    def nbytes(self) -> int:
        """Return the bytes that packed layers hold."""
        return sum(layer.nbytes() for layer in self.layers.values())

    def notes(self) -> list[str]:
        """Return what a user should know, in sentences."""
        reasons = Counter(self.simulated.values())
        kept = [f"{n} layers stay simulated: {reason}" for reason, n in reasons.items()]
        return kept + [f"kernel not used: {reason}" for reason in self.refused]


def pack_model(
    model: nn.Module,
    structure: Structure,
    weight_of: WeightOf | None = None,
    device: torch.device | str = "cpu",
) -> PackedModel:
    """Put packed layers in the place of quantized ones, in place; the full-precision weight of each
    is let go before the next one is packed.

    Layers that cannot be packed keep their quantized weight, fake-quantize their input and stay in
    ``structure``; the others leave it.

    Args:
        model: with quantizers whose ranges are known.
        structure: of the model.
        weight_of: gives the packed weight of a layer by its name; by default that of its weight.
        device: where packed layers go; the rest of the model is still to be moved there.

    Returns:
        What was packed, and why something was not.
    """
    done = PackedModel()
    for unit in structure.units:
        kept: list[Site] = []
        for site in unit.sites:
            reason = why_simulated(site)
            if reason is None:
                layers = _pack_site(model, site, weight_of or _of_its_weight, device, done)
                done.layers |= layers
                continue
            kept.append(site)
            done.simulated |= dict.fromkeys(site.linears, reason)
        unit.sites = kept
    structure.enable(True)
    return done


def _of_its_weight(_: str, linear: QuantLinear) -> PackedWeight:
    return packed_weight(linear.weight_quantizer, linear.weight.detach())


def _pack_site(
    model: nn.Module,
    site: Site,
    weight_of: WeightOf,
    device: torch.device | str,
    done: PackedModel,
) -> dict[str, PackedLinear]:
    quantizer, given, transform = site.quantizer, None, site.transform
    if quantizer.num_bits < OFF:
        built = extension() if torch.device(device).type == "cpu" else None
        faster = None if built is None else built.quantized
        given = PackedInput(quantizer, site.leader.weight.dtype, faster).to(device)
    layers: dict[str, PackedLinear] = {}
    for name in list(site.linears):
        linear = site.linears.pop(name)
        weight = weight_of(name, linear).to(device)
        holding, refused = holding_of(weight, quantizer.num_bits)
        layers[name] = packed_linear(linear, weight, holding, given, leader=not layers)
        model.set_submodule(name, layers[name])
        done.refused += [reason for reason in refused if reason not in done.refused]
        del linear, weight, holding
    if transform is not None:
        transform_input(list(layers.values()), transform.to(device))
    share_products(list(layers.values()))
    return layers


def share_products(layers: Sequence[PackedLinear]) -> None:
    """Let layers that read one input compute few rows in one call, those together whose kernel does
    that and whose formats are the same.

    Args:
        layers: packed; all are given the very same tensor in a forward pass.
    """
    alike: dict[tuple[object, ...], list[PackedLinear]] = {}
    for layer in layers:
        form = (layer.kernels[0].together, layer.bits, layer.groups, layer.dtype)
        alike.setdefault(form, []).append(layer)
    for found in alike.values():
        together = found[0].kernels[0].together
        if together is None or len(found) == 1:
            continue
        shared = SharedProduct([packed_of(layer) for layer in found], together)
        for place, layer in enumerate(found):
            layer.shared, layer.place = shared, place

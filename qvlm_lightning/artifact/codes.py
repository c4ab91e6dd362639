"""Quantized weights as an artifact stores them: packed codes, scales and zero points.

Of a layer ``NAME`` the file has ``NAME.codes``, ``NAME.scale`` and, where codes are asymmetric,
``NAME.zero_point`` (:class:`~qvlm_lightning.nn.packing.PackedWeight`) instead of ``NAME.weight``
and of everything its weight quantizer owns. A layer whose weight is shared with another module
keeps its weight.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.finite import check_finite
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.packing import PackedWeight, packed_bytes, packed_weight

Kind = tuple[torch.dtype, tuple[int, ...]]


def coded_layers(model: nn.Module) -> dict[str, QuantLinear]:
    """Return name -> layer whose weight is stored as codes."""
    owners = Counter(id(x) for x in model.state_dict(keep_vars=True).values())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear)
        and module.weight_quantizer.active
        and owners[id(module.weight)] == 1
    }


def belongs_to(name: str, layers: Mapping[str, QuantLinear]) -> str | None:
    """Return the layer whose codes are stored instead of a tensor, or ``None``.

    Args:
        name: of a tensor of the model.
        layers: of :func:`coded_layers`.
    """
    path, _, own = name.rpartition(".")
    path = path.removesuffix(".weight_quantizer") if own != "weight" else path
    taken = own == "weight" or name.startswith(f"{path}.weight_quantizer.")
    return path if taken and path in layers else None


def code_tensors(name: str, linear: QuantLinear, weight: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a layer, on the CPU.

    Args:
        name: of the layer.
        linear: the layer.
        weight: what is quantized, [O, I]; of adapters the merged one.
    """
    quantizer = linear.weight_quantizer
    packed = packed_weight(quantizer, weight.detach().to(quantizer.clip_ratio.device))
    given = {"codes": packed.codes, "scale": packed.scale, "zero_point": packed.zero_point}
    return {f"{name}.{own}": x.cpu() for own, x in given.items() if x is not None}


def code_kinds(name: str, linear: QuantLinear) -> dict[str, Kind]:
    """Return type and shape of the tensors of a layer, by name."""
    quantizer = linear.weight_quantizer
    outputs, groups, _ = quantizer.shape
    bits = quantizer.num_bits
    codes = (outputs, packed_bytes(linear.in_features, bits))
    kinds: dict[str, Kind] = {
        f"{name}.codes": (torch.uint8, codes),
        f"{name}.scale": (linear.weight.dtype, (outputs, groups)),
    }
    if not quantizer.symmetric:
        kinds[f"{name}.zero_point"] = (torch.uint8, (packed_bytes(outputs * groups, bits),))
    return kinds


def stored_weight(
    name: str, linear: QuantLinear, tensors: Mapping[str, Tensor], where: str
) -> PackedWeight:
    """Return the packed weight of a layer from what a file holds.

    Args:
        name: of the layer.
        linear: the layer.
        tensors: of the file.
        where: what holds them, for messages.

    Raises:
        InputError: a tensor is missing or of another type or shape, or a scale is none.
    """
    given: dict[str, Tensor | None] = {"zero_point": None}
    for own, kind in code_kinds(name, linear).items():
        value = tensors.get(own)
        if value is None or (value.dtype, tuple(value.shape)) != kind:
            raise InputError(f"{where} does not fit its own config, for example at {own}")
        given[own.rpartition(".")[2]] = value
    codes, scale = given["codes"], given["scale"]
    assert codes is not None
    assert scale is not None
    check_finite([(f"{name}.scale", scale)], where)
    if not bool((scale > 0).all()):
        raise InputError(f"{where} has {name}.scale at {float(scale.min()):g}; allowed: > 0")
    features = (linear.out_features, linear.in_features)
    return PackedWeight(
        codes, scale, given["zero_point"], linear.weight_quantizer.num_bits, features
    )

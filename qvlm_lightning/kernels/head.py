"""The output head of a model at 8 bits and less, without data: rounded to nearest.

Shapes: V words of the vocabulary, D hidden.
"""

from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.kernels.packed_model import PackedModel
from qvlm_lightning.kernels.table import holding_of
from qvlm_lightning.nn.packed_linear import PackedLinear
from qvlm_lightning.nn.packing import WIDTHS, PackedWeight, pack_codes
from qvlm_lightning.quant.primitives import quantize_symmetric, symmetric_scale
from qvlm_lightning.quant.scheme import OFF

_ROWS = 2048  # words that are quantized at once


def check_head_bits(bits: int | None) -> None:
    """Refuse a width that a head cannot be packed at.

    Raises:
        InputError: it is not one of 2 to 8.
    """
    if bits is not None and bits not in WIDTHS:
        raise InputError(f"an output head of {bits} bits was asked for; allowed: 2 to 8")


@torch.no_grad()
def quantize_head(model: Any, bits: int, packed: PackedModel | None) -> None:
    """Quantize the output head in place, symmetric, with one scale per word; an embedding that it
    is tied to stays as it is.

    Args:
        model: a Hugging Face model.
        bits: width of a code, 2 to 8.
        packed: takes the packed head in; ``None`` rounds its weight and packs nothing.

    Raises:
        InputError: another width, or a head that is quantized already.
    """
    check_head_bits(bits)
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise InputError(
            f"the output head is a {type(head).__name__}; head bits are for one that is not "
            "quantized yet"
        )
    (name,) = (n for n, module in model.named_modules() if module is head)
    weight = head_weight(head.weight, bits)
    if packed is None:
        model.set_submodule(name, _rounded(head, weight))
        return
    holding, refused = holding_of(weight, OFF)
    layer = PackedLinear(weight, holding, head.bias)
    model.set_submodule(name, layer)
    packed.layers[name] = layer
    packed.refused += [reason for reason in refused if reason not in packed.refused]


def head_weight(weight: Tensor, bits: int) -> PackedWeight:
    """Return a weight [V, D] rounded to nearest on ``[-absmax, absmax]`` of each word."""
    scales, packed = [], []
    for rows in weight.split(_ROWS):
        scale = symmetric_scale(rows.abs().amax(dim=1, keepdim=True), bits, weight.dtype)
        codes = quantize_symmetric(rows, scale, bits) + 2 ** (bits - 1)
        scales.append(scale.to(weight.dtype))
        packed.append(pack_codes(codes, bits))
    features = (weight.shape[0], weight.shape[1])
    return PackedWeight(torch.cat(packed), torch.cat(scales), None, bits, features)


def _rounded(head: nn.Linear, weight: PackedWeight) -> nn.Linear:
    with torch.device("meta"):
        rounded = nn.Linear(head.in_features, head.out_features, bias=False)
    # a layer of its own: a tied embedding keeps its values
    rounded.weight = nn.Parameter(weight.dequantized(), requires_grad=False)
    rounded.bias = head.bias
    return rounded

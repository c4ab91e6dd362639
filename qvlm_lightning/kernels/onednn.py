"""oneDNN's product of unsigned input codes and signed weight codes, one scale per output channel.

Signed inputs are not given: they take a reference loop that is thousands of times slower. On
processors without VNNI sums of two products saturate at 16 bits, so that only weights of up to 7
bits are right there; the self-test (:mod:`qvlm_lightning.kernels.self_test`) finds out.

Shapes: N rows (tokens), I inputs, O outputs.
"""

from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.kernels.torch_kernels import packed_of, signed_codes, signed_zeros
from qvlm_lightning.nn.packed_input import InputCodes
from qvlm_lightning.nn.packed_linear import Given, PackedLinear
from qvlm_lightning.nn.packing import PackedWeight


def held(weight: PackedWeight) -> dict[str, Tensor]:
    """Return what a layer holds in the ``onednn`` layout: codes of 8 bits in oneDNN's own order."""
    assert weight.bits == 8
    signed = (weight.levels() ^ 128).view(torch.int8)
    tensors = {"codes": _ordered(signed), "scale": weight.scale}
    if weight.zero_point is not None:
        tensors["zero_step"] = weight.zeros().to(torch.float32) - 128
    return tensors


def held_product(layer: PackedLinear, given: Given) -> Tensor:
    """Return the product with a weight in the ``onednn`` layout."""
    zero_step: Any = getattr(layer, "zero_step", None)
    return _product(layer.codes, layer.scale, zero_step, given)


def product(layer: PackedLinear, given: Given) -> Tensor:
    """Return the product with a weight in the ``dense`` layout, put in order for this call."""
    weight = packed_of(layer)
    return _product(_ordered(signed_codes(weight)), weight.scale, signed_zeros(weight), given)


def _ordered(signed: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(signed, None)
    return packed


def _product(codes: Tensor, scale: Tensor, zero_step: Tensor | None, given: Given) -> Tensor:
    assert isinstance(given, InputCodes)
    scales = scale.to(torch.float32).reshape(-1)
    nothing = torch.zeros(len(scales), dtype=torch.int32)
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        *(given.codes, 1.0, given.zero_point, codes, scales, nothing),
        *(None, 1.0, 0, torch.float32, "none", [], ""),
    )
    if zero_step is not None:
        size = given.codes.shape[1]
        rows = given.codes.sum(dim=1, dtype=torch.int32) - given.zero_point * size
        y = y - rows[:, None].to(torch.float32) * (scales * zero_step.reshape(-1))
    return y * given.scale

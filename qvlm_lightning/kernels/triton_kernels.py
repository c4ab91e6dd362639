"""Kernels of packed layers on a GPU, of Triton programs where Triton is installed."""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from qvlm_lightning.nn.packed_input import InputCodes
from qvlm_lightning.nn.packed_linear import Given, PackedLinear


@cache
def programs() -> ModuleType | None:
    """Return the module of Triton programs; ``None`` where Triton is not installed, or does not
    run on the GPU that is there.
    """
    try:
        from qvlm_lightning.kernels import triton_dense
    except ImportError:
        return None
    # it can be imported where it finds no compiler
    return triton_dense if not torch.cuda.is_available() or triton_dense.runs() else None


def few_rows(layer: PackedLinear, given: Given) -> Tensor:
    """Return the product of a program that reads codes and writes no weight; sums in float32."""
    found = programs()
    assert found is not None
    x = given.steps(torch.float32) if isinstance(given, InputCodes) else given
    y: Tensor = found.product(layer, x)
    return y * given.scale if isinstance(given, InputCodes) else y


def dequantized(layer: PackedLinear, dtype: torch.dtype) -> Tensor | None:
    """Return the weight [O, I] of a layer on a GPU; ``None`` where Triton does not run."""
    found = programs() if layer.codes.device.type == "cuda" else None
    if found is None:
        return None
    weight: Tensor = found.dequantized(layer, dtype)
    return weight

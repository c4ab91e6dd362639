"""The floating type a full-precision model answers in."""

import torch
from torch import nn

from qvlm_lightning.errors import InputError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(name: str | None) -> None:
    """Refuse a name that is not one of PRECISIONS; None keeps the type the model was loaded in.

    Raises:
        InputError: an unknown name.
    """
    if name is not None and name not in PRECISIONS:
        raise InputError(f"precision is {name!r}; allowed are {', '.join(PRECISIONS)}")


def precision_of(model: nn.Module) -> str:
    """Name the type of a model's largest weight.

    Raises:
        InputError: a type that is none of PRECISIONS.

    Example:
        >>> precision_of(nn.Linear(2, 3).half())
        'fp16'
    """
    floating = [p for p in model.parameters() if p.is_floating_point()]
    dtype = max(floating, key=torch.Tensor.numel).dtype
    names = {kind: name for name, kind in PRECISIONS.items()}
    if dtype not in names:
        raise InputError(f"the model's weights are {dtype}; allowed are {', '.join(PRECISIONS)}")
    return names[dtype]


def cast(model: nn.Module, precision: str) -> None:
    """Convert a model's weights in place, as if it had been loaded in that type.

    Args:
        model: changed in place.
        precision: one of PRECISIONS.
    """
    # buffers keep their type: rotary frequencies are float32 in every Hugging Face model
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(PRECISIONS[precision])

"""The model as transformers alone builds it."""

import re
from typing import Any

import torch
from torch import nn

from qvlm_lightning.errors import Foreign, InputError


def plain_model(model: Any, weights: set[str]) -> nn.Module:
    """Return the model that transformers builds from the configuration, on the meta device.

    Args:
        model: quantized model of an artifact.
        weights: names of its weights, without quantizers.

    Raises:
        InputError: transformers has no such model, or its weights have other names, so that it
            would read ours wrongly or not at all.
    """
    from transformers import AutoModelForImageTextToText

    if not type(model).__module__.startswith("transformers."):
        raise InputError(
            f"{type(model).__name__} is a model of this package: transformers alone cannot load "
            "it, nor can what is built on it; the artifact is what can be loaded"
        )
    with Foreign("transformers cannot build the model"), torch.device("meta"):
        plain = AutoModelForImageTextToText.from_config(model.config)
    assert isinstance(plain, nn.Module)
    odd = sorted(weights - plain.state_dict().keys())
    if odd:
        experts = any(re.search(r"\bexperts\b", name) for name in odd)
        raise InputError(
            f"transformers alone has no weight {odd[0]}"
            + (
                ": it keeps all experts of a layer in one tensor, which has no codes here; the "
                "nearest that it holds is a model without experts, or experts named in ignore"
                if experts
                else "; the artifact is what can be loaded"
            )
        )
    return plain

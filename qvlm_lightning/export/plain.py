"""The model as transformers alone builds it, and the names that its own files use."""

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


def stored_names(plain: nn.Module) -> dict[str, str]:
    """Return name in the model -> name under which transformers stores it in a file.

    transformers renames weights when it loads them; other programs know the stored names.

    Args:
        plain: model of transformers.

    Raises:
        InputError: a weight is stored in another form, not only under another name.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        PrefixChange,
        WeightConverter,
        WeightRenaming,
        apply_converters,
        apply_renamings,
    )

    steps: Any = get_model_conversion_mapping(plain, add_legacy=False)
    back = [s.reverse_transform() for s in steps if not isinstance(s, PrefixChange)][::-1]
    renamings = [step for step in back if isinstance(step, WeightRenaming)]
    converters = [step for step in back if isinstance(step, WeightConverter)]
    names = {}
    for name in plain.state_dict():
        if apply_converters(name, converters)[1] is not None:
            raise InputError(
                f"weight {name} is stored in another form than it is used in, which is not "
                "exported; the artifact is what can be loaded"
            )
        names[name] = apply_renamings(name, renamings)
    assert len(set(names.values())) == len(names), "two weights would have one name"
    return names

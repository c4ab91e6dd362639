"""Attention of single queries on a CPU: one pass over the stored keys and values.

transformers' fused attention is several times slower there for one query than plain products are.

Shapes: B texts, H heads of the query, J of keys and values, S stored tokens, D channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from qvlm_lightning.kernels.extension import extension

NAME = "qvlm_single_query"
"""What transformers calls it."""
_UNUSUAL = ("position_bias", "cache", "softcap", "s_aux")
"""Further inputs of an attention function that change what it computes."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return attention [B, T, H, D], as an attention function of transformers; that of several
    queries is torch's.

    Args:
        module: that attends.
        query: [B, H, T, D].
        key: [B, J, S, D].
        value: [B, J, S, D].
        attention_mask: bool, [B, 1, T, S]; ``None`` where queries see what is before them.
        scaling: of scores; default ``D ** -0.5``.
        dropout: none in evaluation.
        others: of torch's attention.
    """
    plain = attention_mask is None and dropout == 0 and not torch.is_grad_enabled()
    unusual = any(others.get(name) is not None for name in _UNUSUAL)
    if plain and query.shape[2] == 1 and not unusual:
        out = _single(query[:, :, 0], key, value, scaling)
        if out is not None:
            return out[:, None], None
    given = {"dropout": dropout, "scaling": scaling} | others
    outputs, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    return outputs, None


def _single(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor | None:
    """Return attention [B, H, D] of queries [B, H, D]; ``None`` where the extension has none."""
    built = extension() if query.device.type == "cpu" else None
    if built is None:
        return None
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    rows = [built.attended(q, k, v, factor) for q, k, v in zip(query, key, value, strict=True)]
    found = [row for row in rows if row is not None]
    return torch.stack(found) if len(found) == len(query) else None


@contextmanager
def single_query_attention(model: Any) -> Iterator[bool]:
    """Let a model that attends by torch's fused attention attend by :func:`attention` inside.

    Args:
        model: a Hugging Face model.

    Yields:
        Whether it does: not on another device, with another attention, or without the extension.
    """
    before = model.config._attn_implementation
    device = next(model.parameters()).device.type
    if before != "sdpa" or device != "cpu" or extension() is None:
        yield False
        return
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    try:
        model.set_attn_implementation(NAME)
        yield True
    finally:
        model.set_attn_implementation(before)

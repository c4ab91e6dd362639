"""Queries, keys and probabilities of an attention, caught where its layer computes them.

Whatever a model does to queries and keys before they meet (rotary positions of any kind, norms of
heads, scaling) has then been done; masks, causality and soft caps are those of the function that
the model calls.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

Function = Callable[..., Any]


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention function.

    Shapes: B samples, H query heads, K key and value heads, T queries, S keys, E channels of a
    head.

    Attributes:
        function: what the model calls.
        module: the attention that calls it.
        query: [B, H, T, E], behind rotary positions.
        key: [B, K, S, E], likewise.
        args, kwargs: what follows the values: mask, scaling and so on.
    """

    function: Function
    module: nn.Module
    query: Tensor
    key: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @torch.no_grad()
    def averages(self, rows_BSD: Tensor, head: int) -> Tensor:
        """Return ``A_h x`` of the query heads h that read one key head, [B, T, H / K, D].

        The function itself is given the rows as values, so that A is what the model has.

        Args:
            rows_BSD: x, a row for each key.
            head: the key head.
        """
        group = self.query.shape[1] // self.key.shape[1]
        heads = slice(head * group, (head + 1) * group)

        def own(value: Any) -> Any:  # a mask or bias for each query head
            several = isinstance(value, Tensor) and value.dim() == 4
            return value[:, heads] if several and value.shape[1] == self.query.shape[1] else value

        args = tuple(own(value) for value in self.args)
        kwargs = {name: own(value) for name, value in self.kwargs.items()}
        query, key = self.query[:, heads], self.key[:, head : head + 1]
        found = self.function(self.module, query, key, rows_BSD[:, None].to(key), *args, **kwargs)
        output: Tensor = found[0]
        return output


@contextmanager
def attention_calls(module: nn.Module) -> Iterator[list[AttentionCall]]:
    """Within the block, catch how an attention calls the function that the library gives it.

    A tower of packed images calls once per image. What calls none is an attention of another form.

    Args:
        module: the attention.
    """
    calls: list[AttentionCall] = []
    chosen = AttentionInterface.get_interface

    def get_interface(self: AttentionInterface, name: str, default: Function) -> Function:
        function: Function = chosen(self, name, default)

        def see(caller: nn.Module, query: Tensor, key: Tensor, value: Tensor, *a: Any, **k: Any):  # type: ignore[no-untyped-def]
            if caller is module:
                calls.append(AttentionCall(function, caller, query, key, a, k))
            return function(caller, query, key, value, *a, **k)

        return see

    with patch.object(AttentionInterface, "get_interface", get_interface):
        yield calls

"""Stored keys and values of a generation: in buffers with room for more, in full or as int8 codes.

Shapes: B texts, J heads, S stored tokens, N new ones, D channels.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from qvlm_lightning.quant.primitives import quantize_symmetric

_ROOM = 256
"""Tokens that a buffer has room for when it is made."""
_CODES = 127
"""Codes are whole numbers between -127 and 127."""


class _Buffer:
    """Tensors put behind each other along their tokens, without a copy of what is there already."""

    def __init__(self) -> None:
        self.all: Tensor | None = None
        self.tokens = 0

    def add(self, new: Tensor) -> Tensor:
        """Return [B, J, S + N, D], a view of the buffer, with ``new`` [B, J, N, D] at its end."""
        before, after = self.tokens, self.tokens + new.shape[2]
        if self.all is None or after > self.all.shape[2]:
            shape = (*new.shape[:2], after + _ROOM, new.shape[3])
            grown = new.new_empty(shape)
            if self.all is not None:
                grown[:, :, :before] = self.all[:, :, :before]
            self.all = grown
        self.all[:, :, before:after] = new
        self.tokens = after
        return self.all[:, :, :after]

    def rows(self, places: Tensor) -> None:
        """Keep these texts, in this order."""
        if self.all is not None:
            self.all = self.all[places].contiguous()


class BufferedLayer(DynamicLayer):
    """Keys and values of a layer in buffers: a new token costs no copy of those before it."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self._buffers: tuple[_Buffer, ...] = (_Buffer(), _Buffer())

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return all keys and values [B, J, S + N, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._buffers
        self.keys, self.values = keys.add(key_states), values.add(value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return S."""
        return self._buffers[0].tokens

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these texts."""
        for buffer in self._buffers:
            buffer.rows(indices)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these texts."""
        self.batch_select_indices(beam_idx)

    def crop(self, *_: Any) -> None:
        """Refuse what the buffers would not notice."""
        raise NotImplementedError("buffered keys and values only grow; use transformers' cache")

    reset = batch_repeat_interleave = offload = crop

    def nbytes(self) -> int:
        """Return the bytes of what is stored, room for more left out."""
        stored = [b.all[:, :, : b.tokens] for b in self._buffers if b.all is not None]
        return sum(x.numel() * x.element_size() for x in stored)


class Int8Layer(BufferedLayer):
    """Keys and values as codes of 8 bits, with one symmetric scale per token and head: ``absmax /
    127``, in the type of the model. They are dequantized when they are read.
    """

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self._buffers = tuple(_Buffer() for _ in range(4))

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return all keys and values [B, J, S + N, D], as their codes say."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, key_scales, values, value_scales = self._buffers
        read = []
        for states, codes, scales in (
            (key_states, keys, key_scales),
            (value_states, values, value_scales),
        ):
            new_codes, new_scales = int8_codes(states)
            read.append(codes.add(new_codes).to(states.dtype) * scales.add(new_scales))
        return read[0], read[1]


def int8_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes, int8 [.., D], and scales [.., 1] in the type of ``x``, one for every token and
    head.

    Example:
        >>> int8_codes(torch.tensor([[-254.0, 127.0, 2.0]]))
        (tensor([[-127,   64,    1]], dtype=torch.int8), tensor([[2.]]))
    """
    kind = torch.finfo(x.dtype)
    scale = (x.abs().amax(dim=-1, keepdim=True).float() / _CODES).clamp_min(kind.tiny)
    scale = scale.to(x.dtype)
    codes = quantize_symmetric(x, scale.float(), 8).clamp_min(-_CODES)
    return codes.to(torch.int8), scale


def stored_bytes(cache: DynamicCache) -> int:
    """Return the bytes of what a cache of :func:`key_value_cache` stores in its buffers."""
    return sum(x.nbytes() for x in cache.layers if isinstance(x, BufferedLayer))


def key_value_cache(config: Any, kind: str = "full") -> DynamicCache:
    """Return an empty cache for a generation.

    Args:
        config: of a Hugging Face model; layers that keep a window only stay transformers' own.
        kind: ``full`` or ``int8``.
    """
    cache = DynamicCache(config=config)
    make = {"full": BufferedLayer, "int8": Int8Layer}[kind]
    cache.layers = [make() if type(x) is DynamicLayer else x for x in cache.layers]
    return cache

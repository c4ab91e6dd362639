"""Sink tokens of a decoder: the few that all others attend to, and that carry massive activations.

Shapes: B samples, T tokens, K tokens of the prefix, O outputs of a Linear layer, C stacked copies.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.routing import Route


@dataclass
class SinkTokens:
    """Which tokens of a prompt are sinks, and where they are in the running forward pass.

    Attributes:
        prefix: ids of the first tokens, the same in every prompt, K of them.
        tokens: ids that are sinks wherever they stand.
        stored: whether the keys and values of ``prefix`` are stored (``sink: prefix``).
        place: of the running pass, [B, T] int64: place in ``prefix``, K for one of ``tokens``, -1
            for all others; ``None`` before the first pass.
        spread: whether inputs of experts come as [B, T, D], one row per token of the prompt.
    """

    prefix: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    stored: bool = False
    place: Tensor | None = None
    spread: bool = False

    @property
    def found(self) -> bool:
        """Whether it is known which tokens are sinks."""
        return bool(self.prefix or self.tokens)

    def places(self, ids: Tensor, mask: Tensor | None = None, past: int = 0) -> Tensor:
        """Return the place of every token, as ``place`` holds it.

        Args:
            ids: [B, T] int64.
            mask: [B, past + T], 0 for padding on either side; ``None`` for none.
            past: tokens that are in a key-value cache already.

        Raises:
            InputError: keys and values are stored for other first tokens than a prompt has.
        """
        size, length = len(self.prefix), ids.shape[1]
        real = ids.new_ones(len(ids), past + length)
        if mask is not None:
            real[:, -mask.shape[1] :] = mask
        rank = (real.cumsum(dim=1) - 1).masked_fill(real == 0, size)[:, -length:]
        place = torch.full_like(ids, -1)
        for token in self.tokens:
            place[ids == token] = size
        first = rank < size
        wanted = torch.tensor(self.prefix, dtype=ids.dtype, device=ids.device)
        same = torch.ones_like(first)
        same[first] = ids[first] == wanted[rank[first]]
        if self.stored and not bool(same.all()):
            row, column = (~same).nonzero()[0].tolist()
            raise InputError(
                f"the quantized model holds keys and values of the first tokens "
                f"{list(self.prefix)}, a prompt has {int(ids[row, column])} at place "
                f"{int(rank[row, column])}; use the chat template that it was calibrated with, or "
                "scheme.sink: none"
            )
        # the first token is a sink whatever it is
        return torch.where(first & (same | (rank == 0)), rank, place)

    @contextmanager
    def at(self, place: Tensor, spread: bool = False) -> Iterator[None]:
        """Within the block, the running pass has these places (see ``place`` and ``spread``)."""
        before = self.place, self.spread
        self.place, self.spread = place, spread
        try:
            yield
        finally:
            self.place, self.spread = before

    def rows(self, shape: torch.Size, route: Route | None = None) -> Tensor:
        """Return the place of every row of an activation.

        Args:
            shape: of the activation, [C * B, T, D], or [C * B * T, D] of a layer that flattens its
                tokens, or [C * B, S, D] of an expert.
            route: of the expert.

        Returns:
            int64, of ``shape`` without the last dimension.

        Raises:
            InputError: it does not belong to the running pass.
        """
        if self.place is None:
            raise InputError(
                "sink tokens are found by their ids; call the model as a whole, with input_ids"
            )
        place, rows = self.place, shape[:-1]
        if route is not None and route.tokens is not None and not self.spread:
            tokens = route.tokens
            place = place.repeat(max(1, len(tokens) // len(place)), 1).to(tokens.device)
            chosen = place.gather(1, tokens.clamp_min(0))
            return chosen.masked_fill(tokens < 0, -1)
        copies, rest = divmod(rows.numel(), place.numel())
        if rest or (len(rows) == 2 and rows[1] != place.shape[1]):
            raise InputError(
                f"an activation of shape {tuple(shape)} does not belong to the "
                f"{tuple(place.shape)} tokens of the running pass; call the model as a whole"
            )
        return place.repeat(copies, 1).reshape(rows)

    def watch(self, model: nn.Module) -> None:
        """Note the places of every pass of a model, from its ``input_ids``.

        Args:
            model: a Hugging Face vision-language model.
        """
        names = inspect.signature(model.forward)

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.found:
                self._note(names.bind_partial(*args, **kwargs).arguments)

        def leave(*_: Any) -> None:
            # a backward pass may run layers again
            if not torch.is_grad_enabled():
                self.place = None

        model.register_forward_pre_hook(note, with_kwargs=True)
        model.register_forward_hook(leave, always_call=True)

    def _note(self, given: dict[str, Any]) -> None:
        given = given | given.get("kwargs", {})
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if ids is None:
            raise InputError("sink tokens are found by their ids; give input_ids")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            raise InputError(
                "sink tokens need attention_mask as [samples, tokens]; a static cache makes "
                "another one, use the default cache"
            )
        cache = given.get("past_key_values")
        self.place = self.places(ids, mask, 0 if cache is None else int(cache.get_seq_length()))

    def describe(self) -> str:
        """Return a line that names the sinks by their ids."""
        first = "any" if -1 in self.prefix else ", ".join(map(str, self.prefix))
        more = f"; wherever they stand: {', '.join(map(str, self.tokens))}" if self.tokens else ""
        what = "keys and values are stored" if self.stored else "not quantized, a simulation only"
        return f"sink tokens ({what}): the first {len(self.prefix)}, ids {first}{more}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"prefix": list(self.prefix), "tokens": list(self.tokens)}

    def update(self, values: Any) -> None:
        """Take over what :meth:`to_dict` returned.

        Raises:
            InputError: it is something else.
        """
        given = values if isinstance(values, dict) else {}
        for name in ("prefix", "tokens"):
            ids = given.get(name)
            if not isinstance(ids, list) or not all(type(i) is int for i in ids):
                raise InputError(
                    f"sinks is {values!r}; needed are lists of ids 'prefix' and 'tokens'"
                )
            setattr(self, name, tuple(ids))


class SinkOutput(nn.Module):
    """What a key or value projection gives for the stored first tokens, in full precision.

    Stored are outputs of the Linear layer: keys before norms of heads and rotary positions, which
    are the same functions of them at run time.

    Args:
        sinks: tell which rows are first tokens.

    Attributes:
        value: [K, O] in the model's type, or ``None`` as long as it is not known.
    """

    value: Tensor | None

    def __init__(self, sinks: SinkTokens) -> None:
        super().__init__()
        self.sinks = sinks
        self.register_buffer("value", None)

    def forward(self, output: Tensor) -> Tensor:
        """Return ``output`` [.., O] with the stored rows in place of those of the first tokens."""
        if self.value is None:
            return output
        place = self.sinks.rows(output.shape)
        first = (place >= 0) & (place < len(self.value))
        value = self.value.to(output)  # a state dict may come from elsewhere
        stored = value[place.clamp(0, len(value) - 1)]
        return torch.where(first[..., None], stored, output)

    def hold(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Make a place for the value, to be filled."""
        self.value = torch.full(shape, float("nan"), dtype=dtype, device=device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take over a stored value too, which a fresh layer has no place for."""
        given = state_dict.get(f"{prefix}value")
        if self.value is None and given is not None:
            self.hold(tuple(given.shape), given.dtype, given.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

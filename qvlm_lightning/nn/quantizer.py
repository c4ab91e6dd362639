"""The activation quantizer of one site: the input that a group of Linear layers shares."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qvlm_lightning.nn.routing import Route
from qvlm_lightning.nn.sinks import SinkTokens
from qvlm_lightning.nn.version_key import version_key
from qvlm_lightning.quant.primitives import fake_quantize, fake_quantize_symmetric


class ActivationQuantizer(nn.Module):
    """Fake-quantizes the input of a site; owns its range.

    The range is ``low * low_ratio .. high * high_ratio``: ``low`` and ``high`` (buffers) come from
    calibration, the ratios (parameters, initially 1) are what visual-encoder optimisation learns.
    In mode
    ``dynamic_token`` there is no stored range: ``high`` is the clip ratio on each token's absmax
    and
    ``low`` its negative.

    Args:
        num_bits: 2-8, or 16 for a quantizer that passes its input through.
        mode: ``static_tensor``, ``static_channel`` or ``dynamic_token``.
        shape: shape of the stored range, broadcast against ``[B, T, D]``: ``()`` for one range,
            ``(D,)`` per channel, ``(T, 1)`` per position.
        consumers: number of Linear layers that read this site.

    Attributes:
        sinks: tell which tokens pass unquantized; ``None`` for none.
        learns_scale: whether in ``dynamic_token`` mode gradients reach ``x`` through its largest
            magnitude too.
        route: of an expert's site, whose rows are tokens in another order.
    """

    sinks: SinkTokens | None
    route: Route | None

    low: Tensor
    high: Tensor
    percentile: Tensor

    def __init__(self, num_bits: int, mode: str, shape: tuple[int, ...], consumers: int) -> None:
        super().__init__()
        self.num_bits = num_bits
        self.mode = mode
        self.consumers = consumers
        self.enabled = self.learns_scale = False
        self.sinks, self.route = None, None
        if mode == "dynamic_token":
            low, high = torch.full(shape, -1.0), torch.ones(shape)
        else:
            low, high = torch.full(shape, float("nan")), torch.full(shape, float("nan"))
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("percentile", torch.tensor(1.0, dtype=torch.float64))
        self.low_ratio = nn.Parameter(torch.ones(shape), requires_grad=False)
        self.high_ratio = nn.Parameter(torch.ones(shape), requires_grad=False)
        self._candidates: tuple[Tensor, Tensor] | None = None
        # q, k and v call with the very same tensor: quantize it once
        self._shared: tuple[tuple[object, ...], Tensor, Tensor, int] | None = None

    @property
    def active(self) -> bool:
        """Whether the forward pass changes its input."""
        return self.enabled and self.num_bits < 16

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor, percentile: float) -> None:
        """Store a calibrated range and put the learnable ratios back to 1.

        Args:
            low: lower bound, broadcastable to this quantizer's shape.
            high: upper bound; in ``dynamic_token`` mode the clip ratio.
            percentile: the percentile that produced it, kept for the report.
        """
        self.low.copy_(low)
        self.high.copy_(high)
        self.percentile.fill_(percentile)
        self.low_ratio.fill_(1.0)
        self.high_ratio.fill_(1.0)
        self._shared = None

    def forget(self) -> None:
        """Let the kept quantized input go."""
        self._shared = None

    @contextmanager
    def candidates(self, low: Tensor, high: Tensor) -> Iterator[None]:
        """Within the block, the batch holds C stacked candidates, the c-th quantized with ``low[c],
        high[c]``.

        Args:
            low: [C, *shape].
            high: [C, *shape].
        """
        self._candidates, self._shared = (low, high), None
        try:
            yield
        finally:
            self._candidates, self._shared = None, None

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the current range with the learned ratios, as the forward pass uses it."""
        return self.low * self.low_ratio, self.high * self.high_ratio

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x`` [B, T, D] (or [N, D]); pass it through when not active."""
        if not self.active:
            return x
        key = None if self.consumers == 1 else self._version_key(x)
        if key is not None and self._shared is not None and self._shared[0] == key:
            _, _, y, left = self._shared
            self._shared = (key, x, y, left - 1) if left > 1 else None
            return y
        y = self._quantize(x)
        if self.sinks is not None and self.sinks.found:
            y = torch.where((self.sinks.rows(x.shape, self.route) >= 0)[..., None], x, y)
        # x is kept too: as long as it lives, no other tensor has its identity
        self._shared = None if key is None else (key, x, y, self.consumers - 1)
        return y

    def _version_key(self, x: Tensor) -> tuple[object, ...] | None:
        """Return what a quantized input depends on; ``None`` if changes could not be noticed."""
        own = version_key(self.low, self.high, self.low_ratio, self.high_ratio)
        if own is None:
            return None
        return (*own, self.num_bits, torch.is_grad_enabled(), id(x), version_key(x))

    def _quantize(self, x: Tensor) -> Tensor:
        if self._candidates is None:
            return self._fake_quantize(x, *self.bounds())
        low, high = self._candidates
        count = low.shape[0]
        stacked = x.reshape(count, x.shape[0] // count, *x.shape[1:])
        spread = [count] + [1] * (stacked.dim() - low.dim()) + list(low.shape[1:])
        return self._fake_quantize(stacked, low.reshape(spread), high.reshape(spread)).reshape(
            x.shape
        )

    def _fake_quantize(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        if self.mode == "dynamic_token":
            scaled = x if self.learns_scale else x.detach()
            absmax = scaled.to(torch.float32).abs().amax(dim=-1, keepdim=True)
            return fake_quantize_symmetric(x, absmax * high, self.num_bits)
        return fake_quantize(x, low, high, self.num_bits)

    def extra_repr(self) -> str:
        """Show width, mode and shape in ``print(model)``."""
        return f"num_bits={self.num_bits}, mode={self.mode}, shape={tuple(self.low.shape)}"

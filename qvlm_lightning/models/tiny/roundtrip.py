"""A minimal static round-to-nearest, to see how sensitive the embedded model is.

It is a yardstick for training and shares no code with the quantizers it would otherwise test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def round_to_grid(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Round to ``2**bits`` equally spaced levels over [low, high] (asymmetric, zero is a level).

    Args:
        x: values.
        low: lower ends, broadcast against ``x``.
        high: upper ends.
        bits: width.

    Returns:
        Rounded values, in the precision of ``x``.

    Example:
        >>> round_to_grid(torch.tensor([0.1, 0.9]), torch.tensor(0.0), torch.tensor(1.0), 1)
        tensor([0., 1.])
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    step = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(x.dtype).eps)
    zero = (-low / step).round()
    return ((x / step + zero).round().clamp(0, 2**bits - 1) - zero) * step


@contextmanager
def quantized(model: nn.Module, bits: int, calibrate: Callable[[], object]) -> Iterator[None]:
    """Quantize weights and activations of all Linear layers but ``lm_head`` for a while.

    Args:
        model: the model; it is itself again afterwards.
        bits: width of weights (per output channel) and activations (static, per tensor).
        calibrate: runs the model on calibration data; minimum and maximum are kept.

    Yields:
        Nothing; the model is quantized inside the block.
    """
    linears = [
        m
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and not n.endswith("lm_head")
    ]
    ends: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def observe(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        low, high = args[0].amin(), args[0].amax()
        if module in ends:
            low, high = torch.minimum(low, ends[module][0]), torch.maximum(high, ends[module][1])
        ends[module] = (low, high)

    def quantize(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        if module not in ends:
            return (args[0],)
        return (round_to_grid(args[0], *ends[module], bits),)

    hooks = [m.register_forward_pre_hook(observe) for m in linears]
    calibrate()
    for hook in hooks:
        hook.remove()
    kept = [m.weight.data for m in linears]
    for linear in linears:
        w = linear.weight.data
        linear.weight.data = round_to_grid(w, w.amin(1, True), w.amax(1, True), bits)
    hooks = [m.register_forward_pre_hook(quantize) for m in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for linear, weight in zip(linears, kept, strict=True):
            linear.weight.data = weight

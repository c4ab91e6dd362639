"""The weight quantizer of one Linear layer, a twin of the activation quantizer."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.quant.weights import (
    fake_quantize_weight_on,
    half_ranges,
    weight_codes_on,
    weight_qparams,
    weight_ranges,
)

OFF = 16


class WeightQuantizer(nn.Module):
    """Fake-quantizes a weight [O, I]; owns its range.

    The range is ``low * clip_ratio .. high * clip_ratio``. ``low`` and ``high`` are measured from
    the weight (minimum and maximum) until a method decides them; ``clip_ratio`` (a parameter,
    initially 1) is what visual-encoder optimisation learns.

    Args:
        features: (outputs O, inputs I) of the layer.
        num_bits: 2-8, or 16 for a weight left alone.
        group_size: inputs that share a range; ``None`` for one range per output channel.
        symmetric: symmetric codes.
        device: of what calibration learns.

    Attributes:
        low, high: [O, G, 1] float32, or ``None`` as long as they are measured.
        half_scales: whether ranges of a float32 weight are rounded to scales in float16.
        scale, zero_point: [O, G] float32, of a weight that exists as codes only; then there is no
            range.
    """

    low: Tensor | None
    high: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(
        self,
        features: tuple[int, int],
        num_bits: int,
        group_size: int | None,
        symmetric: bool,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.features, self.num_bits = features, num_bits
        self.group_size, self.symmetric = group_size, symmetric
        self.half_scales = False
        self.register_buffer("low", None)
        self.register_buffer("high", None)
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("zero_point", None, persistent=False)
        ones = torch.ones(features[0], 1, device=device)
        self.clip_ratio = nn.Parameter(ones, requires_grad=False)

    @property
    def active(self) -> bool:
        """Whether it changes a weight."""
        return self.num_bits < OFF

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the ranges, [O, G, 1]."""
        outputs, inputs = self.features
        return outputs, inputs // (self.group_size or inputs), 1

    def ranges(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range of ``weight``, [O, G, 1], stored or measured, with its clip ratio."""
        if self.low is None or self.high is None:
            low, high = weight_ranges(weight, self.group_size, self.symmetric, self.clip_ratio)
        else:
            low, high = (bound * self.clip_ratio[..., None] for bound in (self.low, self.high))
        if self.half_scales and weight.dtype == torch.float32:
            return half_ranges(low, high, self.num_bits, self.symmetric)
        return low, high

    def forward(self, weight: Tensor) -> Tensor:
        """Quantize and dequantize ``weight`` [O, I]."""
        low, high = self.ranges(weight)
        return fake_quantize_weight_on(weight, low, high, self.num_bits, self.symmetric)

    def qparams(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of ``weight``, [O, G]; what packing and export read."""
        if self.scale is not None and self.zero_point is not None:
            return self.scale, self.zero_point
        low, high = self.ranges(weight)
        return weight_qparams(low, high, self.num_bits, self.symmetric, weight.dtype)

    def codes(self, weight: Tensor) -> Tensor:
        """Return the codes of ``weight``, [O, I] int32; dequantized they are the forward pass's
        values to the bit.
        """
        scale, zero_point = self.qparams(weight)
        return weight_codes_on(weight, scale, zero_point, self.num_bits, self.symmetric)

    def hold_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        """Keep the scale and zero point of a weight that exists as codes only.

        Args:
            scale: [O, G].
            zero_point: [O, G], 0 where codes are symmetric.
        """
        device = self.clip_ratio.device
        self.scale = scale.to(device, torch.float32)
        self.zero_point = zero_point.to(device, torch.float32)

    def hold_range(self) -> None:
        """Make a place for a decided range, to be filled."""
        place = torch.full(self.shape, float("nan"), device=self.clip_ratio.device)
        self.low, self.high = place, place.clone()

    @torch.no_grad()
    def keep_range(self, weight: Tensor) -> None:
        """Store the range that ``weight`` has now."""
        low, high = (bound.clone() for bound in self.ranges(weight))
        self.low, self.high = low, high
        self.clip_ratio.fill_(1.0)

    def measure_again(self) -> None:
        """Forget the decided range."""
        self.low = self.high = None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take over a decided range too, which a fresh quantizer has no place for."""
        if self.low is None and f"{prefix}low" in state_dict:
            self.hold_range()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Show width and groups in ``print(model)``."""
        return f"num_bits={self.num_bits}, group_size={self.group_size}"


@contextmanager
def exact_weights(quantizers: Iterable[WeightQuantizer]) -> Iterator[None]:
    """Within the block, the weights of some layers are not quantized; all else of them stays."""
    held = [(quantizer, quantizer.num_bits) for quantizer in quantizers]
    for quantizer, _ in held:
        quantizer.num_bits = OFF
    try:
        yield
    finally:
        for quantizer, bits in held:
            quantizer.num_bits = bits

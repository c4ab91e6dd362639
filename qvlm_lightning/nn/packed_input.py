"""The input of packed layers as integer codes.

Shapes: N rows (tokens), I inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.version_key import version_key
from qvlm_lightning.quant.primitives import (
    affine_qparams,
    quantize,
    quantize_symmetric,
    symmetric_scale,
)


@dataclass(frozen=True)
class InputCodes:
    """A quantized input: ``(code - zero point) * scale``."""

    codes: Tensor
    """uint8 [N, I], from 0 to 2^b - 1."""
    scale: Tensor
    """float32, [] or one of every row, [N, 1]."""
    zero_point: int
    """The code of 0."""
    dtype: torch.dtype
    """Type of the model, in which the layer answers."""

    def to(self, device: torch.device | str) -> "InputCodes":
        """Return the codes on a device."""
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device))

    def steps(self, dtype: torch.dtype) -> Tensor:
        """Return ``code - zero point`` [N, I]; whole numbers of at most 8 bits and a sign, which
        also bfloat16 holds exactly.
        """
        return self.codes.to(dtype) - self.zero_point


class PackedInput(nn.Module):
    """Makes the codes that an :class:`ActivationQuantizer` rounds to; for a site whose layers are
    packed.

    Args:
        quantizer: with one stored range, or with a range measured on each token.
        dtype: type of the model.
        faster: makes the same codes of rows [N, I] in less time, or ``None`` where it cannot.
    """

    scale: Tensor | None

    def __init__(
        self,
        quantizer: ActivationQuantizer,
        dtype: torch.dtype,
        faster: "Callable[[PackedInput, Tensor], InputCodes | None] | None" = None,
    ) -> None:
        super().__init__()
        self.faster = faster
        self.num_bits, self.consumers = quantizer.num_bits, quantizer.consumers
        self.dynamic = quantizer.mode == "dynamic_token"
        low, high = quantizer.bounds()
        self.zero_point = 2 ** (self.num_bits - 1)
        self.register_buffer("scale", None)
        self.clip = 1.0
        if self.dynamic:
            self.clip = float(high)
        else:
            scale, zero_point = affine_qparams(low, high, self.num_bits, dtype)
            self.scale, self.zero_point = scale.detach(), int(zero_point)
        # q, k and v call with the very same tensor: quantize it once
        self._shared: tuple[tuple[object, ...], Tensor, InputCodes, int] | None = None

    def forward(self, x: Tensor) -> InputCodes:
        """Return the codes of ``x`` [..., I]; rows with NaN get the scale NaN, so that what is
        computed from them is none either.
        """
        key = None if self.consumers == 1 else version_key(x)
        kept = self._shared
        # in a copy of this module lies a copy of x, and the key means nothing
        if key is not None and kept is not None and kept[0] == key and kept[1] is x:
            _, _, given, left = kept
            self._shared = (key, x, given, left - 1) if left > 1 else None
            return given
        given = self._codes(x.reshape(-1, x.shape[-1]))
        # x is kept too: as long as it lives, no other tensor has its identity
        self._shared = None if key is None else (key, x, given, self.consumers - 1)
        return given

    def forget(self) -> None:
        """Let the kept codes go."""
        self._shared = None

    @torch.no_grad()
    def _codes(self, x: Tensor) -> InputCodes:
        made = None if self.faster is None else self.faster(self, x)
        return self.plain_codes(x) if made is None else made

    def plain_codes(self, x: Tensor) -> InputCodes:
        """Return the codes of rows [N, I], computed by torch."""
        if self.scale is None:
            # as ActivationQuantizer does, in the same order
            absmax = x.to(torch.float32).abs().amax(dim=-1, keepdim=True)
            scale = symmetric_scale(absmax * self.clip, self.num_bits, x.dtype)
            steps = quantize_symmetric(x, scale, self.num_bits) + self.zero_point
        else:
            scale = self.scale
            zero_point = scale.new_tensor(self.zero_point)
            steps = quantize(x, scale, zero_point, self.num_bits)
            broken = steps.sum(dim=-1, keepdim=True).isnan()
            if bool(broken.any()):
                scale = torch.where(broken, float("nan"), scale)
        return InputCodes(steps.to(torch.uint8), scale, self.zero_point, x.dtype)

    def extra_repr(self) -> str:
        """Show width and mode in ``print(model)``."""
        return f"num_bits={self.num_bits}, dynamic={self.dynamic}"

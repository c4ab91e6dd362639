"""Dense packing of integer codes, and a quantized weight as it is kept when it is packed.

Shapes: O outputs, I inputs, G groups of inputs, P = ceil(I b / 8) bytes of a packed row.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qvlm_lightning.nn.weight_quantizer import WeightQuantizer

WIDTHS = range(2, 9)
"""Bits of a code that can be packed."""


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes take.

    Example:
        >>> packed_bytes(10, 3)
        4
    """
    return -(-count * bits // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes without gaps: code ``i`` takes the bits ``i b`` to ``(i + 1) b - 1`` of its row,
    whose bit 0 is the lowest one of the first byte.

    Args:
        codes: whole numbers from 0 to 2^b - 1, [..., I].
        bits: width b, 2 to 8.

    Returns:
        uint8 [..., ceil(I b / 8)]; bits behind the last code are 0.

    Raises:
        ValueError: another width, or a code that does not fit into it.

    Example:
        >>> pack_codes(torch.tensor([5, 1, 7]), 3).tolist()
        [205, 1]
    """
    _check_width(bits)
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < 2**bits):
        raise ValueError(f"codes of {bits} bits lie between 0 and {2**bits - 1}")
    count = codes.shape[-1]
    if bits == 8:
        return codes.to(torch.uint8).contiguous()
    codes = torch.nn.functional.pad(codes.to(torch.uint8), (0, -count % 8))
    # eight codes are one word of b bytes
    words = torch.zeros((*codes.shape[:-1], codes.shape[-1] // 8), dtype=torch.int64)
    words = words.to(codes.device)
    for place in range(8):
        words |= codes[..., place::8].to(torch.int64) << (place * bits)
    packed = codes.new_empty((*words.shape, bits))
    for place in range(bits):
        packed[..., place] = (words >> (8 * place)) & 255
    packed = packed.reshape(*words.shape[:-1], words.shape[-1] * bits)
    return packed[..., : packed_bytes(count, bits)].contiguous()


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the codes of :func:`pack_codes`, uint8 [..., I].

    Args:
        packed: uint8 [..., ceil(I b / 8)].
        bits: width b, 2 to 8.
        count: codes of a row, I.

    Raises:
        ValueError: another width, or rows of another length.

    Example:
        >>> unpack_codes(torch.tensor([205, 1], dtype=torch.uint8), 3, 3).tolist()
        [5, 1, 7]
    """
    _check_width(bits)
    if packed.shape[-1] != packed_bytes(count, bits):
        raise ValueError(
            f"{count} codes of {bits} bits take {packed_bytes(count, bits)} bytes, "
            f"not {packed.shape[-1]}"
        )
    if bits == 8:
        return packed
    packed = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % bits))
    words = torch.zeros((*packed.shape[:-1], packed.shape[-1] // bits), dtype=torch.int64)
    words = words.to(packed.device)
    for place in range(bits):
        words |= packed[..., place::bits].to(torch.int64) << (8 * place)
    codes = packed.new_empty((*words.shape, 8))
    for place in range(8):
        codes[..., place] = (words >> (place * bits)) & (2**bits - 1)
    return codes.reshape(*words.shape[:-1], words.shape[-1] * 8)[..., :count]


@dataclass(frozen=True)
class PackedWeight:
    """A quantized weight: ``(code - zero point) * scale`` for codes from 0 to 2^b - 1.

    Symmetric codes are shifted by 2^(b-1), which is then the zero point of all of them.
    """

    codes: Tensor
    """uint8 [O, P], of :func:`pack_codes`."""
    scale: Tensor
    """[O, G], in the type of the model."""
    zero_point: Tensor | None
    """uint8, all O G of them packed like one row; ``None`` where codes are symmetric."""
    bits: int
    """Width b of a code."""
    features: tuple[int, int]
    """(O, I)."""

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.features[1] // self.scale.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        tensors = (self.codes, self.scale, self.zero_point)
        return sum(x.nbytes for x in tensors if x is not None)

    def to(self, device: torch.device | str) -> "PackedWeight":
        """Return the weight on a device."""
        zeros = None if self.zero_point is None else self.zero_point.to(device)
        codes, scale = self.codes.to(device), self.scale.to(device)
        return replace(self, codes=codes, scale=scale, zero_point=zeros)

    def outputs(self, first: int, last: int) -> "PackedWeight":
        """Return the weight of the outputs ``first`` to ``last - 1``, which shares memory with
        this one.

        Args:
            first: a multiple of 8, so that zero points start with a byte.
            last: at most O.
        """
        assert first % 8 == 0
        zeros = self.zero_point
        if zeros is not None:
            groups = self.scale.shape[1]
            ends = (packed_bytes(place * groups, self.bits) for place in (first, last))
            zeros = zeros[slice(*ends)]
        features = (last - first, self.features[1])
        return PackedWeight(
            self.codes[first:last], self.scale[first:last], zeros, self.bits, features
        )

    def levels(self) -> Tensor:
        """Return the codes, uint8 [O, I]."""
        return unpack_codes(self.codes, self.bits, self.features[1])

    def zeros(self) -> Tensor:
        """Return the zero points, uint8 [O, G]."""
        if self.zero_point is None:
            half = 2 ** (self.bits - 1)
            return torch.full(self.scale.shape, half, dtype=torch.uint8, device=self.scale.device)
        count = self.scale.numel()
        return unpack_codes(self.zero_point, self.bits, count).reshape(self.scale.shape)

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight [O, I] that a fake-quantized layer multiplies with, equal to the bit.

        Args:
            dtype: of the result; default that of the scales.
        """
        grouped = self.levels().to(torch.float32).reshape(*self.scale.shape, -1)
        grouped.sub_(self.zeros()[..., None]).mul_(self.scale.to(torch.float32)[..., None])
        return grouped.reshape(self.features).to(dtype or self.scale.dtype)


@torch.no_grad()
def packed_weight(quantizer: WeightQuantizer, weight: Tensor) -> PackedWeight:
    """Pack a weight on the range of its quantizer.

    Args:
        quantizer: of a width of at most 8 bits.
        weight: [O, I], in full precision or already rounded to its codes.
    """
    assert quantizer.active
    bits = quantizer.num_bits
    scale, zero_point = quantizer.qparams(weight)
    codes = quantizer.codes(weight)
    zeros = None
    if quantizer.symmetric:
        codes = codes + 2 ** (bits - 1)
    else:
        zeros = pack_codes(zero_point.reshape(-1), bits)
    # rounded to the type of the model before codes were computed: exact
    scale = scale.to(weight.dtype).contiguous()
    return PackedWeight(pack_codes(codes, bits), scale, zeros, bits, quantizer.features)


def _check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise ValueError(f"codes of {bits} bits cannot be packed; allowed: 2 to 8")

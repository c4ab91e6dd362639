"""Quantized weights in the layout of compressed-tensors, and read from it.

Of a layer the files have ``weight_scale`` and either ``weight_packed`` with ``weight_shape``, or,
with one byte per code, ``weight``; where codes are asymmetric, ``weight_zero_point`` too. Packed
rows are ours to the bit, but for their length: a whole number of 32-bit words. Zero points are
packed along the outputs. Codes in bytes are signed, from -2^(b-1) on.

Shapes: O outputs, I inputs, G groups, b bits of a code.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from qvlm_lightning.artifact.codes import Kind, code_kinds
from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.packing import pack_codes, packed_bytes, unpack_codes
from qvlm_lightning.weights.shards import Shards

_WORD = 4
_OF_INPUTS = ("input_scale", "input_zero_point")


def compressed_kinds(linear: QuantLinear, packed: bool) -> dict[str, Kind]:
    """Return type and shape of the tensors of a layer's weight, by the ends of their names.

    Args:
        linear: the layer.
        packed: whether codes are packed, instead of one byte each.
    """
    quantizer = linear.weight_quantizer
    outputs, groups, _ = quantizer.shape
    inputs, bits = linear.in_features, quantizer.num_bits
    kinds: dict[str, Kind] = {"weight_scale": (linear.weight.dtype, (outputs, groups))}
    if packed:
        kinds["weight_packed"] = (torch.int32, (outputs, _words(inputs, bits)))
        kinds["weight_shape"] = (torch.int64, (2,))
        zeros: Kind = (torch.int32, (_words(outputs, bits), groups))
    else:
        kinds["weight"] = (torch.int8, (outputs, inputs))
        zeros = (torch.int8, (outputs, groups))
    return kinds if quantizer.symmetric else kinds | {"weight_zero_point": zeros}


def to_compressed(
    end: str, linear: QuantLinear, packed: bool, read: Callable[[str], Tensor]
) -> Tensor:
    """Return a tensor of :func:`compressed_kinds`.

    Args:
        end: of its name.
        linear: the layer.
        packed: whether codes are packed.
        read: gives ``codes``, ``scale`` or ``zero_point`` of the layer as an artifact has them.
    """
    bits, features = linear.weight_quantizer.num_bits, (linear.out_features, linear.in_features)
    if end == "weight_scale":
        return read("scale")
    if end == "weight_shape":
        return torch.tensor(features)
    if end == "weight_packed":
        return _as_words(read("codes"))
    if end == "weight":
        return _signed(unpack_codes(read("codes"), bits, features[1]), bits)
    assert end == "weight_zero_point"
    outputs, groups, _ = linear.weight_quantizer.shape
    zeros = unpack_codes(read("zero_point"), bits, outputs * groups).reshape(outputs, groups)
    return _as_words(pack_codes(zeros.T, bits)).T.contiguous() if packed else _signed(zeros, bits)


def from_compressed(
    end: str, linear: QuantLinear, packed: bool, read: Callable[[str], Tensor]
) -> Tensor:
    """Return ``codes``, ``scale`` or ``zero_point`` of a layer as an artifact has them.

    Args:
        end: which of them.
        linear: the layer.
        packed: whether codes are packed.
        read: gives a tensor of :func:`compressed_kinds`, of that type and shape.

    Raises:
        ValueError: a code has more than its bits.
    """
    bits, inputs = linear.weight_quantizer.num_bits, linear.in_features
    if end == "scale":
        return read("weight_scale")
    if end == "codes":
        if packed:
            return _as_bytes(read("weight_packed"), packed_bytes(inputs, bits))
        return pack_codes(_unsigned(read("weight"), bits), bits)
    assert end == "zero_point"
    zeros = read("weight_zero_point")
    if packed:
        outputs = linear.out_features
        rows = _as_bytes(zeros.T.contiguous(), packed_bytes(outputs, bits))
        return pack_codes(unpack_codes(rows, bits, outputs).T.reshape(-1), bits)
    return pack_codes(_unsigned(zeros, bits).reshape(-1), bits)


class CompressedTensors(Mapping[str, Tensor]):
    """Tensors of files in the compressed-tensors layout, by the names and in the form of an
    artifact in our own; each is read when it is asked for.

    Args:
        shards: what the files hold.
        layers: name -> layer whose weight may be stored as codes.
        names: name of a weight in the model -> its name in the files.
        where: what holds the files, for messages.

    Raises:
        InputError: a tensor of a layer is missing, or of another type or shape.
    """

    def __init__(
        self,
        shards: Shards,
        layers: Mapping[str, QuantLinear],
        names: Mapping[str, str],
        where: str,
    ) -> None:
        self._shards, self._where = shards, where
        self._made: dict[str, Callable[[], Tensor]] = {}
        self._kinds: dict[str, Kind] = {}
        left = dict.fromkeys(shards.entries)
        for name, told in names.items():
            path, stored = name.removesuffix(".weight"), told.removesuffix(".weight")
            if path in layers and path != name and f"{stored}.weight_scale" in left:
                for own in self._put_layer(path, stored, layers[path]):
                    left.pop(own, None)
            elif told in left:
                self._put(name, told)
                del left[told]
        for odd in left:  # whoever reads all finds out that the model has no such tensor
            self._put(odd, odd)

    def _put(self, name: str, told: str) -> None:
        entry = self._shards.entries[told]
        self._made[name] = partial(self._shards.read, told)
        self._kinds[name] = entry.dtype, entry.shape

    def _put_layer(self, path: str, stored: str, linear: QuantLinear) -> list[str]:
        """Make place for the codes of a layer and return what it takes of the files."""
        packed = f"{stored}.weight_packed" in self._shards.entries
        kinds = compressed_kinds(linear, packed)
        for end, kind in kinds.items():
            entry = self._shards.entries.get(f"{stored}.{end}")
            if entry is None or (entry.dtype, entry.shape) != kind:
                raise InputError(
                    f"{self._where} does not fit its own config, for example at {stored}.{end}"
                )

        def make(end: str) -> Tensor:
            def read(own: str) -> Tensor:
                return self._shards.read(f"{stored}.{own}")

            try:
                return from_compressed(end, linear, packed, read)
            except ValueError as error:
                raise InputError(f"{self._where} is broken: {stored}: {error}") from error

        for name, kind in code_kinds(path, linear).items():
            self._made[name] = partial(make, name.rpartition(".")[2])
            self._kinds[name] = kind
        return [f"{stored}.{end}" for end in (*kinds, *_OF_INPUTS)]

    def shapes(self) -> dict[str, Tensor]:
        """Return tensors of these types and shapes without values."""
        return {n: torch.empty(s, dtype=t, device="meta") for n, (t, s) in self._kinds.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._made[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def _words(count: int, bits: int) -> int:
    return -(-count * bits // (8 * _WORD))


def _as_words(packed: Tensor) -> Tensor:
    """Return rows of bytes [.., P] as rows of 32-bit words."""
    rows = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % _WORD))
    return rows.contiguous().view(torch.int32)


def _as_bytes(words: Tensor, count: int) -> Tensor:
    return words.view(torch.uint8)[..., :count].contiguous()


def _signed(codes: Tensor, bits: int) -> Tensor:
    return (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    return codes.to(torch.int16) + 2 ** (bits - 1)

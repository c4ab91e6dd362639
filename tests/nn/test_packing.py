"""Dense packing: by hand, round trips of every width and shape, and the values of a weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qvlm_lightning.nn.packing import pack_codes, packed_bytes, packed_weight, unpack_codes
from qvlm_lightning.nn.weight_quantizer import WeightQuantizer


def bits_of(row: list[int], width: int) -> list[int]:
    """Return the bytes of a row, bit by bit."""
    bits = [(code >> place) & 1 for code in row for place in range(width)]
    bits += [0] * (-len(bits) % 8)
    return [sum(bits[i + k] << k for k in range(8)) for i in range(0, len(bits), 8)]


def test_by_hand():
    assert pack_codes(torch.tensor([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack_codes(torch.tensor([[7], [0]]), 3).tolist() == [[7], [0]]
    assert pack_codes(torch.tensor([255, 0]), 8).tolist() == [255, 0]


shapes = st.lists(st.integers(0, 5), max_size=2)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 8), rows=shapes, count=st.integers(0, 41), seed=st.integers(0, 9))
def test_every_width_and_shape_comes_back(bits, rows, count, seed):
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (*rows, count), generator=draw)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*rows, packed_bytes(count, bits))
    assert torch.equal(unpack_codes(packed, bits, count), codes.to(torch.uint8))
    if codes.numel():
        first = codes.reshape(-1, count)[0].tolist()
        assert packed.reshape(-1, packed.shape[-1])[0].tolist() == bits_of(first, bits)


@pytest.mark.parametrize("bits", [1, 9, 16])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match="allowed: 2 to 8"):
        pack_codes(torch.zeros(8), bits)
    with pytest.raises(ValueError, match="allowed: 2 to 8"):
        unpack_codes(torch.zeros(8, dtype=torch.uint8), bits, 8)


def test_codes_that_do_not_fit_are_refused():
    for code in (8, -1):
        with pytest.raises(ValueError, match="between 0 and 7"):
            pack_codes(torch.tensor([code]), 3)
    with pytest.raises(ValueError, match="not 5"):
        unpack_codes(torch.zeros(5, dtype=torch.uint8), 4, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [None, 4])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_a_packed_weight_has_the_values_of_the_fake_quantized_one(bits, group, symmetric, dtype):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 12, generator=draw).to(dtype)
    quantizer = WeightQuantizer((5, 12), bits, group, symmetric)
    with torch.no_grad():
        quantizer.clip_ratio.copy_(torch.linspace(0.7, 1, 5)[:, None])
        expected = quantizer(weight)
    packed = packed_weight(quantizer, weight)
    assert torch.equal(packed.dequantized(), expected)
    assert packed.scale.dtype == dtype
    groups = 1 if group is None else 3
    assert packed.codes.shape == (5, -(-12 * bits // 8))
    zeros = 0 if symmetric else -(-5 * groups * bits // 8)
    assert packed.nbytes == packed.codes.numel() + 5 * groups * dtype.itemsize + zeros

"""Codes of inputs are those of the fake quantizer; a packed layer answers as its quantized one."""

import copy

import pytest
import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.kernels import torch_kernels
from qvlm_lightning.kernels.extension import extension
from qvlm_lightning.kernels.self_test import dense
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.packed_input import PackedInput
from qvlm_lightning.nn.packed_linear import (
    Holding,
    Kernel,
    PackedLinear,
    packed_linear,
    why_simulated,
)
from qvlm_lightning.nn.packing import packed_weight
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.structure import Site

INPUTS, OUTPUTS = 16, 6


def quantizer_of(mode: str, bits: int, consumers: int = 1) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(bits, mode, (), consumers)
    low, high = (-1.0, 0.9) if mode == "dynamic_token" else (-1.3, 2.1)
    quantizer.set_range(torch.tensor(low), torch.tensor(high), 1.0)
    with torch.no_grad():
        quantizer.high_ratio.fill_(0.8)
    quantizer.enabled = True
    return quantizer


def layer_of(
    quantizer: ActivationQuantizer, dtype: torch.dtype, leader: bool = True
) -> QuantLinear:
    torch.manual_seed(0)
    plain = nn.Linear(INPUTS, OUTPUTS).to(dtype).requires_grad_(False)
    linear = QuantLinear.from_linear(plain, quantizer, leader, 4, None, symmetric=False)
    linear.enabled = True
    return linear


def pack(linear: QuantLinear, given: PackedInput | None, leader: bool = True) -> PackedLinear:
    weight = packed_weight(linear.weight_quantizer, linear.weight)
    kernels = [Kernel("dequantize", None, torch_kernels.dequantize)]
    return packed_linear(linear, weight, Holding("dense", dense(weight), kernels), given, leader)


def tokens(dtype: torch.dtype, count: int = 40) -> Tensor:
    torch.manual_seed(1)
    x = 3 * torch.randn(2, count, INPUTS)
    x[0, 0], x[0, 1] = 0, 100
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("mode", ["static_tensor", "dynamic_token"])
def test_codes_of_inputs_are_those_of_the_simulation(mode, bits, dtype):
    quantizer, x = quantizer_of(mode, bits), tokens(dtype)
    codes = PackedInput(quantizer, dtype)(x)
    dequantized = (codes.steps(torch.float32) * codes.scale).to(dtype).reshape(x.shape)
    assert torch.equal(dequantized, quantizer(x))
    assert int(codes.codes.max()) < 2**bits
    assert torch.equal(codes.steps(torch.bfloat16).float(), codes.steps(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["static_tensor", "dynamic_token"])
def test_the_extension_makes_the_same_codes(mode, dtype):
    """To the bit, halves between two codes included; numbers that are none are left to torch."""
    built = extension()
    if built is None:
        pytest.skip("no extension here")
    torch.manual_seed(2)
    for bits in (4, 8):
        site = PackedInput(quantizer_of(mode, bits), dtype)
        x = torch.randn(200, 61) * torch.logspace(-42, 30, 200)[:, None]
        x[0], x[1] = 0, torch.arange(61) / 2
        if site.scale is not None:
            x[2] = (torch.arange(61) + 0.5) * site.scale
        x = x.to(dtype)
        expected, found = site.plain_codes(x), built.quantized(site, x)
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.scale, expected.scale)
        assert found.zero_point == expected.zero_point
        for odd in (torch.nan, torch.inf):
            x[3, 7] = odd
            assert built.quantized(site, x) is None
    assert built.quantized(site, x.half()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", ["static_tensor", "dynamic_token"])
def test_a_packed_layer_answers_as_the_quantized_one(mode, dtype):
    quantizer, x = quantizer_of(mode, 8), tokens(dtype)
    linear = layer_of(quantizer, dtype)
    packed = pack(linear, PackedInput(quantizer, dtype))
    expected, y = linear(x), packed(x)
    assert y.shape == expected.shape
    assert y.dtype == dtype
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.2}
    torch.testing.assert_close(y, expected, **close)
    assert list(packed.used) == ["dequantize"]


def test_layers_of_a_site_quantize_their_input_once():
    quantizer = quantizer_of("static_tensor", 8, consumers=2)
    given = PackedInput(quantizer, torch.float32)
    first = pack(layer_of(quantizer, torch.float32), given)
    second = pack(layer_of(quantizer, torch.float32, leader=False), given, leader=False)
    made = []
    make = given._codes
    given._codes = lambda x: made.append(x) or make(x)
    x = tokens(torch.float32)
    first(x), second(x)
    assert len(made) == 1
    first(x.clone()), second(x.clone())
    assert len(made) == 3, "other tensors are quantized again"
    x.mul_(2)
    first(x)
    assert len(made) == 4, "so is the same one with other values"
    assert [n for n, _ in nn.Sequential(first, second).named_buffers() if "input" in n] == [
        "0.input_codes.scale"
    ]


def test_a_copy_takes_none_of_the_codes_that_the_original_kept():
    given = PackedInput(quantizer_of("static_tensor", 8, consumers=2), torch.float32)
    x = tokens(torch.float32)
    kept, copied = given(x), copy.deepcopy(given)
    of_copy = copied._shared[2]
    assert copied(x) is not of_copy
    assert given(x) is kept


@pytest.mark.parametrize("mode", ["static_tensor", "dynamic_token"])
def test_rows_of_nan_give_nan_and_no_others(mode):
    quantizer, x = quantizer_of(mode, 8), tokens(torch.float32)
    x[1, 3, 5] = torch.nan
    linear = layer_of(quantizer, torch.float32)
    y = pack(linear, PackedInput(quantizer, torch.float32))(x)
    none = y.isnan().any(dim=-1)
    assert none.nonzero().tolist() == [[1, 3]]
    assert bool(y[1, 3].isnan().all())


def test_hostile_shapes():
    packed = pack(layer_of(quantizer_of("static_tensor", 8), torch.float32), None)
    assert packed(torch.zeros(0, 3, INPUTS)).shape == (0, 3, OUTPUTS)
    with pytest.raises(ValueError, match="has 16 inputs, given are 15"):
        packed(torch.zeros(2, 15))


def test_it_has_the_type_and_shape_of_a_weight_and_none_of_its_bytes():
    packed = pack(layer_of(quantizer_of("static_tensor", 8), torch.bfloat16), None)
    assert packed.weight.shape == (OUTPUTS, INPUTS)
    assert packed.weight.dtype == torch.bfloat16
    assert packed.weight.is_meta
    assert not list(packed.parameters())
    assert packed.nbytes() == OUTPUTS * INPUTS // 2 + 2 * OUTPUTS + OUTPUTS // 2 + 2 * OUTPUTS


def test_another_type_is_refused_and_the_present_one_is_none():
    packed = pack(layer_of(quantizer_of("static_tensor", 8), torch.float32), None)
    assert packed.to("cpu", torch.float32) is packed
    with pytest.raises(InputError, match=r"bfloat16 on cpu; allowed: torch.float32 on cpu"):
        nn.Sequential(packed).to(torch.bfloat16)


def test_what_cannot_be_packed_says_why():
    def said(quantizer: ActivationQuantizer, bits: int = 4) -> str | None:
        linear = layer_of(quantizer, torch.float32)
        linear.weight_quantizer.num_bits = bits
        return why_simulated(Site("site", quantizer, {"linear": linear}))

    assert said(quantizer_of("static_tensor", 8)) is None
    assert said(ActivationQuantizer(16, "static_channel", (INPUTS,), 1)) is None
    assert said(quantizer_of("static_tensor", 8), bits=16) == "a weight at 16 bits"
    channels = ActivationQuantizer(8, "static_channel", (INPUTS,), 1)
    assert "one range per channel or position has no integer product" in str(said(channels))

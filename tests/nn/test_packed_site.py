"""Packed layers of one site answer together what each of them answers alone, to the bit."""

import copy
import pickle
import weakref
from collections.abc import Sequence
from itertools import permutations

import pytest
import torch
from torch import Tensor

from qvlm_lightning.kernels import extension as built
from qvlm_lightning.kernels.packed_model import share_products
from qvlm_lightning.kernels.table import holding_of
from qvlm_lightning.nn.packed_input import PackedInput
from qvlm_lightning.nn.packed_linear import PackedLinear
from qvlm_lightning.nn.packing import PackedWeight, pack_codes
from qvlm_lightning.nn.quantizer import ActivationQuantizer

INPUTS, GROUPS = 32, 2
SIZES = (24, 7, 9)  # zero points of 7 x 2 codes of 3 bits end within a byte


@pytest.fixture(autouse=True)
def with_extension() -> None:
    if built.extension() is None:
        pytest.skip(f"no extension here: {built.why_no_extension()}")


def weight_of(outputs: int, bits: int, dtype: torch.dtype, symmetric: bool) -> PackedWeight:
    codes = torch.randint(0, 2**bits, (outputs, INPUTS))
    zeros = None if symmetric else pack_codes(torch.randint(0, 2**bits, (outputs * GROUPS,)), bits)
    scale = (torch.rand(outputs, GROUPS) + 0.5).to(dtype)
    return PackedWeight(pack_codes(codes, bits), scale, zeros, bits, (outputs, INPUTS))


def site_of(
    bits: Sequence[int] = (4, 4, 4),
    activation_bits: int = 16,
    dtype: torch.dtype = torch.float32,
    mode: str = "dynamic_token",
) -> list[PackedLinear]:
    """Return layers of one site that share their product; the second has a bias, the third
    symmetric codes.
    """
    torch.manual_seed(0)
    given = None
    if activation_bits < 16:
        quantizer = ActivationQuantizer(activation_bits, mode, (), len(SIZES))
        quantizer.set_range(torch.tensor(-2.0), torch.tensor(0.9), 1.0)
        given = PackedInput(quantizer, dtype)
    layers = []
    for place, (outputs, width) in enumerate(zip(SIZES, bits, strict=True)):
        weight = weight_of(outputs, width, dtype, symmetric=place == 2)
        holding, _ = holding_of(weight, activation_bits)
        bias = torch.randn(outputs).to(dtype) if place == 1 else None
        layers.append(PackedLinear(weight, holding, bias, given, leader=not place))
    share_products(layers)
    return layers


def alone(layer: PackedLinear, x: Tensor) -> Tensor:
    single = copy.deepcopy(layer)
    single.shared = None
    return single(x)


def counted(layers: Sequence[PackedLinear]) -> list[int]:
    """Return a list that gets the number of weights of every product that is computed."""
    calls: list[int] = []
    for shared in {id(x.shared): x.shared for x in layers if x.shared is not None}.values():
        own = shared.together
        shared.together = lambda w, given, own=own: calls.append(len(w)) or own(w, given)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation_bits", [16, 8, 4])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_one_call_answers_as_one_of_every_layer(bits, activation_bits, dtype):
    for mode in ("static_tensor", "dynamic_token")[: 1 + (activation_bits < 16)]:
        layers = site_of((bits,) * 3, activation_bits, dtype, mode)
        calls = counted(layers)
        for rows in (1, 5, 16):  # four rows are computed at once
            x = torch.randn(1, rows, INPUTS).to(dtype)
            expected = [alone(layer, x) for layer in layers]
            for y, other in zip([layer(x) for layer in layers], expected, strict=True):
                assert torch.equal(y, other)
                assert y.is_contiguous()
                assert y.dtype == dtype
        assert calls == [3, 3, 3]
        assert [list(layer.used) for layer in layers] == [["extension"]] * 3


def test_the_product_is_that_of_the_dequantized_weights():
    layers = site_of((3, 3, 3))
    x = torch.randn(5, INPUTS)
    for layer in layers:
        packed = PackedWeight(
            layer.codes, layer.scale, layer.zero_point, layer.bits, (layer.out_features, INPUTS)
        )
        expected = x.double() @ packed.dequantized().double().T
        expected = expected if layer.bias is None else expected + layer.bias
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-4)


def test_any_layer_may_come_first_and_what_was_taken_is_computed_again():
    layers = site_of()
    calls = counted(layers)
    for order in permutations(range(3)):
        x = torch.randn(2, INPUTS)
        expected = [alone(layer, x) for layer in layers]
        assert all(torch.equal(layers[place](x), expected[place]) for place in order)
    assert calls == [3] * 6
    x = torch.randn(1, INPUTS)
    expected = alone(layers[2], x)
    layers[0](x)
    for _ in range(3):
        y = layers[2](x)
        assert torch.equal(y, expected)
        y.zero_()  # what a layer has answered belongs to its caller
    assert calls == [3] * 9


@pytest.mark.parametrize("activation_bits", [16, 4])
def test_another_input_is_not_taken_for_the_first(activation_bits):
    layers = site_of(activation_bits=activation_bits)
    x = torch.randn(1, INPUTS)
    layers[0](x)
    x.mul_(-2)
    assert torch.equal(layers[1](x), alone(layers[1], x)), "the same tensor with other values"
    other = x.clone()
    other[0, 3] = 7
    assert torch.equal(layers[2](other), alone(layers[2], other)), "another tensor"
    many = torch.randn(17, INPUTS)
    assert torch.equal(layers[0](many), alone(layers[0], many)), "more rows than its kernel takes"
    assert torch.equal(layers[0](other), alone(layers[0], other))
    with torch.inference_mode():
        inner = torch.randn(1, INPUTS)
        layers[0](inner)
        inner.mul_(-2)
        assert torch.equal(layers[1](inner), alone(layers[1], inner)), "changes are not counted"


@pytest.mark.parametrize("activation_bits", [16, 4])
def test_inputs_and_outputs_are_let_go_when_all_layers_have_answered(activation_bits):
    """Until then the input stays, so that no other tensor gets its identity."""
    layers = site_of(activation_bits=activation_bits)
    x = torch.randn(1, INPUTS)
    seen = weakref.ref(x)
    layers[0](x), layers[1](x)
    del x
    assert seen() is not None
    layers[2](seen())
    assert seen() is None


def test_a_layer_of_another_width_stays_alone_and_shares_the_codes():
    layers = site_of((4, 4, 3), activation_bits=8)
    assert layers[0].shared is layers[1].shared
    assert layers[2].shared is None
    x = torch.randn(1, INPUTS)
    expected = [alone(layer, x) for layer in layers]
    site, made, calls = layers[0].site, [], counted(layers)
    make = site._codes
    site._codes = lambda x: made.append(x) or make(x)
    found = [layer(x) for layer in layers]
    assert all(map(torch.equal, found, expected))
    assert calls == [2]
    assert len(made) == 1


def test_copies_keep_nothing_and_answer_the_same():
    layers = torch.nn.ModuleList(site_of(activation_bits=8))
    x = torch.randn(1, INPUTS)
    expected = [alone(layer, x) for layer in layers]
    layers[0](x)
    for copied in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert copied[0].shared is copied[2].shared
        assert copied[0].shared is not layers[0].shared
        assert copied[0].shared._kept is None
        assert copied[1].shared.weights[1].codes is copied[1].codes, "no copy of its own"
        calls = counted(copied)
        assert all(torch.equal(layer(x), y) for layer, y in zip(copied, expected, strict=True))
        assert calls == [3]


@pytest.mark.parametrize("name", ["codes", "scale", "zero_point"])
def test_a_layer_whose_weight_was_replaced_answers_with_the_new_one(name):
    layers = site_of()
    x = torch.randn(1, INPUTS)
    layers[0](x)
    before = layers[1](x)
    own = getattr(layers[1], name)
    setattr(layers[1], name, own * 2 if name == "scale" else own ^ 17)
    layers[0](x)
    found = layers[1](x)
    assert torch.equal(found, alone(layers[1], x))
    assert not torch.equal(found, before)


def test_nothing_is_held_twice():
    layers = site_of()
    for layer in layers:
        weight = layer.shared.weights[layer.place]
        assert weight.codes is layer.codes
        assert weight.scale is layer.scale
        assert weight.zero_point is layer.zero_point
        outputs = layer.out_features
        zeros = 0 if layer.zero_point is None else outputs
        bias = 0 if layer.bias is None else 4 * outputs
        assert layer.nbytes() == outputs * INPUTS // 2 + 8 * outputs + zeros + bias
        assert set(layer.state_dict()) <= {"codes", "scale", "zero_point", "bias"}

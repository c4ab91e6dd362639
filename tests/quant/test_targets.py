"""What a target refuses before anything is calibrated, and scales in float16."""

from typing import Any

import pytest
import torch
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import MinMax, SequentialSearch
from qvlm_lightning.methods.requirements import leaves_whole_tokens
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.nn.weight_quantizer import WeightQuantizer
from qvlm_lightning.quant.scheme import PartScheme, Scheme
from qvlm_lightning.quant.weights import half_ranges, weight_qparams

CT: dict[str, Any] = {"target": "compressed-tensors"}
GGUF: dict[str, Any] = {"target": "gguf"}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("w8a8", CT | {"activation_mode": "static_channel"}, "is activation_mode: static_tensor"),
        ("w8a8", CT | {"sink": "prefix"}, "is sink: none"),
        ("w16a8", CT, "vision with target .* the nearest that it holds is weight_bits: 8"),
        ("w4a8", GGUF, "language with target 'gguf': .* is activation_bits: 16"),
        ("w4a16", GGUF | {"group_size": 48}, "is group_size: 32"),
        ("w8a16", GGUF, "weight_symmetric: true, or weight_bits: 7"),
        ("w4a16", GGUF | {"sink": "bypass"}, "gguf has no place for sink: bypass"),
        ("w4a16", {"target": "onnx"}, "target 'onnx' is not known; allowed: 'compressed-tensors'"),
    ],
)
def test_a_scheme_that_its_target_cannot_hold(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Scheme.parse(name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("w8a8", CT | {"activation_mode": "dynamic_token"}),
        ("w4a16", CT | {"group_size": 48, "activation_mode": "static_channel"}),
        ("w8a16", GGUF | {"weight_symmetric": True, "group_size": 64}),
        ("vision-w8a8_projector-w16a16_language-w4a16", GGUF),
    ],
)
def test_a_scheme_that_its_target_holds(name: str, options: dict[str, Any]) -> None:
    scheme = Scheme.parse(name, **options)
    assert Scheme.from_dict(scheme.to_dict()) == scheme
    assert scheme.to_dict()["target"] == options["target"]
    assert "target" not in Scheme.parse(name).to_dict()


def test_a_single_layer_is_looked_at_in_the_model() -> None:
    family = Llava(str(WEIGHTS))
    model = family.load_model()
    given = Scheme.parse("w4a16", **GGUF, overrides={"layers.3.mlp.up": {"activation_bits": 8}})
    with pytest.raises(InputError, match=r"layers\.3\.mlp\.up_proj with target 'gguf': .* 16"):
        quantize_model(model, family, given)
    assert not any(isinstance(module, WeightQuantizer) for module in model.modules())


def test_a_search_of_clip_ratios_is_refused_for_whole_tokens() -> None:
    scheme = Scheme.parse("w8a8", **CT, activation_mode="dynamic_token")
    search = SequentialSearch()
    ratios = search.candidates("dynamic_token")
    with pytest.raises(InputError, match="method sequential searches clip ratios"):
        leaves_whole_tokens(search.name, ratios, scheme)
    leaves_whole_tokens("rtn", MinMax().candidates("dynamic_token"), scheme)
    leaves_whole_tokens(search.name, ratios, Scheme.parse("w8a8", activation_mode="dynamic_token"))
    weights = Scheme.parse("w4a16", **CT, activation_mode="dynamic_token")
    leaves_whole_tokens(search.name, ratios, weights)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_scales_of_a_half_range_are_numbers_of_float16(bits: int, symmetric: bool) -> None:
    """Each one is the float16 number nearest to the scale of the range, with its zero point."""
    high = (0.1 + torch.rand(64, 3, 1)) * 10 ** torch.linspace(-2, 3, 64)[:, None, None]
    low = -high if symmetric else -high * torch.rand(64, 3, 1)
    scale, zero_point = weight_qparams(low, high, bits, symmetric, torch.float32)
    made = half_ranges(low, high, bits, symmetric)
    found, found_zero = weight_qparams(*made, bits, symmetric, torch.float32)
    assert torch.equal(found, scale.half().float())
    assert (found_zero - zero_point).abs().max() <= (0 if symmetric else 1)
    again = weight_qparams(*half_ranges(*made, bits, symmetric), bits, symmetric, torch.float32)
    assert torch.equal(again[0], found)
    assert torch.equal(again[1], found_zero)


def test_clip_ratios_learn_through_half_ranges() -> None:
    """The gradient is that of the range itself."""
    quantizer = WeightQuantizer((4, 32), 4, None, symmetric=False)
    quantizer.clip_ratio.requires_grad_()
    weight = torch.randn(4, 32)
    gradients = []
    for half in (False, True):
        quantizer.half_scales = half
        low, high = quantizer.ranges(weight)
        quantizer.clip_ratio.grad = None
        (3 * high.sum() - low.sum()).backward()
        gradients.append(quantizer.clip_ratio.grad.clone())
    assert torch.equal(*gradients)
    assert gradients[0].abs().min() > 0


def test_only_the_decoder_of_gguf_has_them() -> None:
    family = Llava(str(WEIGHTS))
    model = family.load_model()
    parts = {"vision": PartScheme(4, 8), "projector": PartScheme(4, 8)}
    scheme = Scheme(**parts, language=PartScheme(4, 16), **GGUF)
    structure = quantize_model(model, family, scheme)
    for name, part in structure.quantized.items():
        linear: Any = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        scale, _ = linear.weight_quantizer.qparams(linear.weight)
        exact = torch.equal(scale, scale.half().float())
        assert exact == (part == "language"), name

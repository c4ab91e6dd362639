"""Widths of single layers on a model: which layers get them, and what is refused."""

import re

import pytest
from torch import nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import PartScheme, Scheme

DOWN = {"activation_bits": 8}


@pytest.mark.parametrize(
    ("scheme", "overrides"),
    [
        ("w4a4", {"down_proj": {"activation_bits": 8}}),
        ("w4a4", {r"layers\.1\.mlp\.down_proj": {"activation_bits": 16, "weight_bits": 16}}),
        ("w4a4", {"mlp": {"activation_bits": 8}, r"layers\.0\.mlp\.fc2": {"activation_bits": 6}}),
        ("w4a4", {"q_proj|v_proj": {"weight_bits": 8}, "linear_2": {"weight_bits": 3}}),
        ("fp", {r"language_model.*(gate|up)_proj": {"activation_bits": 8, "weight_bits": 4}}),
        ("fp", {"linear_1": {"weight_bits": 4}, "k_proj": {"weight_bits": 6}}),
    ],
)
def test_every_layer_has_the_widths_of_plain_loops(
    config, build, family, counted, scheme, overrides
):
    """An override switches a layer of a part at 16 bits on, or a layer of another part off."""
    model = build(config())
    parts, left = counted(config())
    structure = quantize_model(model, family, Scheme.parse(scheme, overrides=overrides))
    assert set(structure.quantized) | set(structure.ignored) == set(parts) | left
    modules, bits = dict(model.named_modules()), 16 if scheme == "fp" else 4
    for name in parts:
        weight_bits = activation_bits = bits
        for pattern, told in overrides.items():
            if re.search(pattern, name):
                weight_bits = told.get("weight_bits", weight_bits)
                activation_bits = told.get("activation_bits", activation_bits)
        layer = modules[name]
        if weight_bits == activation_bits == 16:
            assert type(layer) is nn.Linear
            assert "16 bits" in structure.ignored[name]
            continue
        assert isinstance(layer, QuantLinear)
        assert layer.weight_quantizer.num_bits == weight_bits
        assert layer.site.num_bits == activation_bits
    assert all(type(modules[name]) is not QuantLinear for name in left)


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("w4a4", {"overrides": {"q_porj": DOWN}}, r"pattern 'q_porj' matches no Linear layer that"),
        ("w4a4", {"overrides": {"lm_head": DOWN}}, r"pattern 'lm_head' matches no Linear layer th"),
        (
            "w4a4",
            {"overrides": {"down_proj": DOWN}, "ignore": ("down_proj",)},
            r"pattern 'down_proj' matches no Linear layer that can be quantized; allowed is .*such",
        ),
        (
            "w4a4",
            {"overrides": {"k_proj": DOWN}},
            r"pattern 'k_proj' gives \S*k_proj 8 activation bits, but \S*[qv]_proj reads the same "
            r"input and has 4",
        ),
        (
            "w4a4",
            {"overrides": {"(q|k|v)_proj": DOWN, r"1.self_attn.v": {"activation_bits": 6}}},
            r"pattern '1.self_attn.v' gives \S*v_proj 6 activation bits, but \S*[qk]_proj reads",
        ),
        (
            "fp",
            {"overrides": {"gate_proj": DOWN}},
            r"pattern 'gate_proj' gives \S*gate_proj 8 activation bits, but \S*up_proj reads the "
            r"same input and has 16",
        ),
        (
            "w8a8",
            {"overrides": {"": {"activation_bits": 16, "weight_bits": 16}}},
            r"leaves nothing",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_changed(
    config, build, family, scheme, options, message
):
    model = build(config())
    with pytest.raises(InputError, match=message) as fault:
        quantize_model(model, family, Scheme.parse(scheme, **options))
    assert "\n" not in str(fault.value)
    assert not [name for name, x in model.named_modules() if isinstance(x, QuantLinear)]
    quantize_model(model, family, Scheme.parse("w4a4"))


def test_an_ignored_layer_of_an_input_needs_no_width_of_its_own(config, build, family):
    scheme = Scheme.parse("w4a4", overrides={"(q|k)_proj": DOWN}, ignore=("v_proj",))
    structure = quantize_model(build(config()), family, scheme)
    sites = [s for s in structure.sites if any("q_proj" in name for name in s.linears)]
    assert {s.quantizer.num_bits for s in sites} == {8}


def test_groups_concern_layers_whose_own_weights_are_quantized(config, build, family):
    """16 divides no input of the layers that are left; the others are at 16 bits."""
    off = {"weight_bits": 16}
    scheme = Scheme.parse(
        "w4a4", group_size=16, overrides={"": off, "linear_2": {"weight_bits": 4}}
    )
    message = "group_size 16 divides the inputs of no quantized Linear layer; the layers have 24 in"
    with pytest.raises(InputError, match=message):
        quantize_model(build(config()), family, scheme)
    allowed = Scheme(
        PartScheme(16, 16),
        PartScheme(16, 16),
        PartScheme(16, 4),
        group_size=16,
        overrides={"down_proj": {"weight_bits": 4}},
    )
    structure = quantize_model(build(config()), family, allowed)
    sizes = {
        name: x.weight_quantizer.group_size
        for s in structure.sites
        for name, x in s.linears.items()
    }
    assert {n for n, size in sizes.items() if size == 16} == {n for n in sizes if "down_proj" in n}
    assert structure.notes == []

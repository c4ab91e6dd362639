"""What surgery leaves in full precision, what it refuses, and what it says about both."""

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, Qwen2MoeConfig

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import PartScheme, Scheme

W4A4 = Scheme.parse("w4a4")


def of_type(model: nn.Module, kind: type) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def test_ignored_layers_stay_plain_and_read_an_unquantized_input(quantized, inputs):
    pattern = r"language_model.*v_proj$"
    model, structure = quantized(Scheme.parse("w4a4", ignore=(pattern,)))
    layer = model.model.language_model.layers[0].self_attn
    assert type(layer.v_proj) is nn.Linear
    assert type(layer.k_proj) is QuantLinear
    assert layer.q_proj.site.consumers == 2
    ignored = [name for name, why in structure.ignored.items() if "ignore pattern" in why]
    assert ignored == [f"model.language_model.layers.{i}.self_attn.v_proj" for i in range(2)]
    assert pattern in structure.ignored[ignored[0]]
    seen = {}
    layer.v_proj.register_forward_hook(lambda m, args, out: seen.update(x=args[0], out=out))
    model(**inputs)
    assert torch.equal(seen["out"], seen["x"] @ layer.v_proj.weight.T)


def test_the_leader_of_a_site_may_be_ignored(quantized, inputs):
    model, structure = quantized(Scheme.parse("w4a4", ignore=("q_proj",)))
    layer = model.model.language_model.layers[0].self_attn
    assert "input_quantizer" in dict(layer.k_proj.named_children())
    assert len(of_type(model, ActivationQuantizer)) == len(structure.sites)
    assert model(**inputs).logits.isfinite().all()


def test_a_whole_layer_may_be_ignored(quantized, inputs):
    model, structure = quantized(Scheme.parse("w4a4", ignore=(r"language_model\.layers\.0\.",)))
    units = structure.towers["language"].units
    assert [len(unit.sites) for unit in units] == [0, 4]
    assert structure.enabled()["language"]
    structure.enable(False)
    assert not any(m.enabled for m in of_type(model, QuantLinear).values())


def test_an_ignore_pattern_without_effect_is_refused(config, build, family):
    with pytest.raises(InputError, match="'q_porj' matches no Linear layer"):
        quantize_model(build(config()), family, Scheme.parse("w4a4", ignore=("q_porj",)))
    # naming what is left anyway is no mistake
    quantize_model(build(config()), family, Scheme.parse("w4a4", ignore=("lm_head",)))


def test_parts_at_sixteen_bits_stay_plain(quantized):
    model, structure = quantized(Scheme(vision=PartScheme(16, 16)))
    assert set(structure.quantized.values()) == {"projector", "language"}
    assert not of_type(model.model.vision_tower, QuantLinear)
    reason = structure.ignored["model.vision_tower.encoder.layers.0.mlp.fc1"]
    assert reason == "part 'vision' is at 16 bits"
    assert structure.enabled() == {"vision": False, "projector": True, "language": True}


def test_sixteen_bit_activations_pass_through_and_sixteen_bit_weights_stay(quantized):
    x = torch.randn(2, 3, 24)
    for name, moved in (("w4a16", False), ("w16a4", True)):
        model, _ = quantized(name)
        layer = model.model.language_model.layers[0].self_attn.q_proj
        assert (layer.site(x) is not x) == moved
        assert (layer.quantized_weight() is layer.weight) == moved


def test_nothing_to_quantize_is_refused(config, build, family):
    with pytest.raises(InputError, match="nothing to quantize"):
        quantize_model(build(config()), family, Scheme.parse("fp"))


def test_tower_layers_that_cannot_reach_the_output_are_named_with_the_reason(quantized):
    _, structure = quantized(vision_layers=4, chosen=-3)
    lost = {n: why for n, why in structure.ignored.items() if "encoder.layers" in n}
    assert {n.split(".")[4] for n in lost} == {"2", "3"}
    assert set(lost.values()) == {"cannot reach the output: vision_feature_layer is -3"}
    assert len(lost) == 12


MIXTURES = {
    "mixtral": lambda: MixtralConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
    ),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_experts=3,
        num_experts_per_tok=2,
    ),
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_fused_experts_raise_instead_of_being_skipped(config, build, family, kind):
    model = build(config(text=MIXTURES[kind]()))
    holder = r"model\.language_model\.layers\.0\.mlp\.(gate|experts) "
    with pytest.raises(InputError, match=holder + r".*holds weights .* not a plain Linear layer"):
        quantize_model(model, family, W4A4)
    assert not of_type(model, QuantLinear), "a refused model is left as it was"


@pytest.mark.parametrize("kind", MIXTURES)
def test_fused_experts_may_be_ignored_and_are_listed(config, build, family, counted, inputs, kind):
    model, plain = (build(config(text=MIXTURES[kind]())) for _ in range(2))
    pattern = r"mlp\.(gate|experts)$"
    structure = quantize_model(model, family, Scheme.parse("w4a4", ignore=(pattern,)))
    for layer in range(2):
        for name in ("gate", "experts"):
            full = f"model.language_model.layers.{layer}.mlp.{name}"
            assert structure.ignored[full] == f"ignore pattern {pattern!r}"
    parts, _ = counted(model.config)
    assert structure.quantized == parts
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)


@pytest.mark.parametrize("kind", MIXTURES)
def test_fused_experts_of_a_part_at_sixteen_bits_are_left(config, build, family, kind):
    model = build(config(text=MIXTURES[kind]()))
    structure = quantize_model(model, family, Scheme(language=PartScheme(16, 16)))
    experts = "model.language_model.layers.1.mlp.experts"
    assert structure.ignored[experts] == "part 'language' is at 16 bits"


@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 16, "group_fallback": "error"},
        {"group_size": 5},
        {"ignore": ("q_porj",)},
    ],
    ids=["group", "no group", "ignore"],
)
def test_a_refused_model_is_left_as_it_was(config, build, family, options):
    model = build(config())
    with pytest.raises(InputError):
        quantize_model(model, family, Scheme.parse("w4a4", **options))
    assert not of_type(model, QuantLinear)
    quantize_model(model, family, W4A4)


def test_a_quantized_model_is_not_quantized_again(quantized, family):
    model, _ = quantized()
    with pytest.raises(InputError, match="vision_tower"):
        quantize_model(model, family, W4A4)


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_size_that_does_not_divide_is_refused_on_request(config, build, family):
    scheme = Scheme.parse("w4a4", group_size=16, group_fallback="error")
    with pytest.raises(InputError, match=r"linear_2: group_size 16 does not divide 24.*fallback"):
        quantize_model(build(config()), family, scheme)


def test_a_group_size_that_divides_no_layer_is_refused_with_the_widths(config, build, family):
    message = r"^group_size 7 .* no quantized Linear layer; the layers have 16, 24, 32, 48 inputs"
    with pytest.raises(InputError, match=message):
        quantize_model(build(config()), family, Scheme.parse("w4a4", group_size=7))


def test_only_layers_with_quantized_weights_count_for_the_groups(config, build, family):
    """32 divides inputs of the tower alone, whose weights stay at 16 bits."""
    parts = {"vision": PartScheme(16, 4), "language": PartScheme(4, 16)}
    message = r"group_size 32 .* the layers have 16, 24, 48 inputs"
    with pytest.raises(InputError, match=message):
        quantize_model(build(config()), family, Scheme(**parts, group_size=32))


def test_a_group_size_without_effect_that_was_once_accepted_still_means_channels(
    config, build, family
):
    scheme = Scheme.parse("w4a4", group_size=7, group_fallback="channel")
    structure = quantize_model(build(config()), family, scheme, accepted=True)
    layers = {name: x for s in structure.sites for name, x in s.linears.items()}
    assert {layer.weight_quantizer.group_size for layer in layers.values()} == {None}
    assert len(structure.notes) == len(layers)


def test_fallback_from_groups_to_channels_is_noted_for_each_layer(quantized, inputs):
    model, structure = quantized(Scheme.parse("w4a4", group_size=16))
    for name, layer in of_type(model, QuantLinear).items():
        noted = [note for note in structure.notes if note.startswith(f"{name}: ")]
        assert layer.weight_quantizer.group_size == (None if layer.in_features % 16 else 16)
        assert len(noted) == (layer.in_features % 16 != 0)
        assert all("16" in note and str(layer.in_features) in note for note in noted)
    assert model(**inputs).logits.isfinite().all()


def test_groups_do_not_concern_weights_at_sixteen_bits(quantized):
    _, structure = quantized(Scheme.parse("w16a8", group_size=16))
    assert structure.notes == []
    assert {x.weight_quantizer.group_size for s in structure.sites for x in s.linears.values()} == {
        None
    }

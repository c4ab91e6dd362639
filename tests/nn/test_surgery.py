"""What surgery replaces, what it leaves and why: X1 and X5 (docs/paper.md)."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.sinks import SinkOutput
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import PartScheme, Scheme

MODES = ["static_tensor", "static_channel", "dynamic_token"]
W4A4 = Scheme.parse("w4a4")
OFF = PartScheme(16, 16)


def of_type(model: nn.Module, kind: type) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


# --- X5: numbers and names ------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [-1, -2, -3, 1, 2])
@pytest.mark.parametrize(("vision_layers", "language_layers"), [(3, 1), (5, 4)])
def test_x5_quantized_layers_equal_an_independent_count(
    config, build, family, counted, vision_layers, language_layers, chosen
):
    shape = config(vision_layers, language_layers, chosen)
    parts, left = counted(shape)
    model = build(shape)
    structure = quantize_model(model, family, W4A4)
    found = of_type(model, QuantLinear)
    assert structure.quantized == parts
    assert set(found) == set(parts)
    assert set(structure.ignored) == left
    assert all(structure.ignored.values())
    reached = chosen if chosen > 0 else vision_layers + 1 + chosen
    # CLIP: q k v out, fc1 fc2; Llama: q k v o, gate up down; projector: two
    assert len(found) == 6 * reached + 2 + 7 * language_layers
    assert len(of_type(model, ActivationQuantizer)) == 4 * reached + 2 + 4 * language_layers
    assert {name: len(tower.units) for name, tower in structure.towers.items()} == {
        "vision": reached,
        "projector": 1,
        "language": language_layers,
    }


def test_x5_holds_for_the_embedded_model(counted):
    from qvlm_lightning.models import Tiny
    from qvlm_lightning.models.tiny import WEIGHTS

    parts, left = counted(AutoConfig.from_pretrained(WEIGHTS))
    family = Tiny()
    model = family.load_model()
    structure = quantize_model(model, family, W4A4)
    assert structure.quantized == parts
    assert set(structure.ignored) == left
    assert len(of_type(model, ActivationQuantizer)) == 5 * 4 + 2 + 6 * 4


def test_x5_names_of_the_quantizers(quantized):
    model, structure = quantized(vision_layers=2, language_layers=1)
    tower, decoder = "model.vision_tower.encoder.layers.0", "model.language_model.layers.0"
    projector = "model.multi_modal_projector"
    readers = {
        f"{tower}.attn_in": [f"{tower}.self_attn.{x}_proj" for x in "qkv"],
        f"{tower}.o_in": [f"{tower}.self_attn.out_proj"],
        f"{tower}.mlp_in": [f"{tower}.mlp.fc1"],
        f"{tower}.down_in": [f"{tower}.mlp.fc2"],
        f"{projector}.first_in": [f"{projector}.linear_1"],
        f"{projector}.second_in": [f"{projector}.linear_2"],
        f"{decoder}.attn_in": [f"{decoder}.self_attn.{x}_proj" for x in "qkv"],
        f"{decoder}.o_in": [f"{decoder}.self_attn.o_proj"],
        f"{decoder}.mlp_in": [f"{decoder}.mlp.{x}_proj" for x in ("gate", "up")],
        f"{decoder}.down_in": [f"{decoder}.mlp.down_proj"],
    }
    assert [s.name for s in structure.sites] == list(readers)  # in forward order
    assert {s.name: list(s.linears) for s in structure.sites} == readers
    assert sorted(of_type(model, ActivationQuantizer)) == sorted(
        f"{names[0]}.input_quantizer" for names in readers.values()
    )


def test_every_matrix_of_the_model_is_accounted_for_once(quantized):
    model, structure = quantized(Scheme.parse("w4a4", ignore=("down_proj",)))
    holders = {
        name
        for name, module in model.named_modules()
        if any(p.dim() >= 2 for n, p in module.named_parameters(recurse=False) if n == "weight")
    }
    assert holders == set(structure.quantized) | set(structure.ignored)
    assert not set(structure.quantized) & set(structure.ignored)


# --- X1: off is exact -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_x1_without_quantizers_logits_are_bit_exact(config, build, family, quantized, inputs, mode):
    exact = build(config())(**inputs).logits
    model, structure = quantized(Scheme.parse("w4a4", activation_mode=mode))
    assert not torch.equal(model(**inputs).logits, exact)
    structure.enable(False)
    assert torch.equal(model(**inputs).logits, exact)
    fresh = build(config())
    quantize_model(fresh, family, Scheme.parse("w4a4", activation_mode=mode))
    assert torch.equal(fresh(**inputs).logits, exact), "off is the state after surgery"


def test_x1_holds_without_an_image_and_in_half_precision(config, build, family, inputs):
    text = {k: v for k, v in inputs.items() if k != "pixel_values"}
    text["input_ids"] = text["input_ids"].clamp_min(4)
    for dtype in (torch.float32, torch.bfloat16):
        plain, model = build(config()).to(dtype), build(config()).to(dtype)
        quantize_model(model, family, W4A4)
        assert torch.equal(model(**text).logits, plain(**text).logits)


def test_only_the_named_towers_are_on_inside_the_block_and_as_before_behind_it(quantized, inputs):
    model, structure = quantized()
    both = model(**inputs).logits
    with structure.only({"language"}):
        assert structure.enabled() == {"vision": False, "projector": False, "language": True}
        assert not torch.equal(model(**inputs).logits, both)
    assert torch.equal(model(**inputs).logits, both)


# --- sink tokens ----------------------------------------------------------------------------------


def test_prefix_stores_keys_and_values_of_every_decoder_layer(config, build, family):
    model = build(config(3, 2, -2))
    quantize_model(model, family, Scheme.parse("w4a4", sink="prefix"))
    found = {n.rpartition(".")[0] for n in of_type(model, SinkOutput)}
    layers = [name for name, _ in family.decoder_layers(model)]
    assert found == {f"{layer}.self_attn.{x}_proj" for layer in layers for x in "kv"}


def test_only_sites_of_the_decoder_let_sinks_pass(config, build, family):
    structure = quantize_model(build(config(3, 2, -2)), family, Scheme.parse("w4a4", sink="bypass"))
    for name, tower in structure.towers.items():
        for site in tower.sites:
            assert (site.quantizer.sinks is structure.sinks) == (name == "language")
    assert not structure.sinks.stored


@pytest.mark.parametrize(
    ("scheme", "sentence"),
    [
        (Scheme(language=OFF, sink="bypass"), "leaves it in full precision"),
        (Scheme.parse("w4a16", sink="bypass"), "quantizes none in the decoder"),
        (
            Scheme(sink="prefix", ignore=("1.self_attn.v_proj",)),
            r"1\.self_attn\.v_proj is left alone",
        ),
    ],
)
def test_sinks_that_cannot_be_kept_are_refused(config, build, family, scheme, sentence):
    model = build(config(3, 2, -2))
    with pytest.raises(InputError, match=sentence):
        quantize_model(model, family, scheme)
    assert not of_type(model, QuantLinear), "a refused model is left as it was"


def test_an_attention_of_another_form_is_refused(config, build, family, monkeypatch):
    monkeypatch.setattr(type(family), "attention", lambda self, layer: None)
    with pytest.raises(InputError, match="has another form; allowed here: 'none', 'bypass'"):
        quantize_model(build(config(3, 2, -2)), family, Scheme.parse("w4a4", sink="prefix"))

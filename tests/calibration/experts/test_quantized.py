"""Experts are quantized one by one, routers are left alone."""

import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from qvlm_lightning.forward.samples import model_inputs
from qvlm_lightning.models.experts import find_experts
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.shards import Shards


def test_experts_are_quantized_routers_are_named(name, make):
    model, family = make(name)
    plain = {n for n, x in model.named_modules() if type(x) is nn.Linear}
    structure = quantize_model(model, family, Scheme.parse("w4a4"))
    layers = 1 if name.startswith("moe_llava") else 2
    routers = {n: why for n, why in structure.ignored.items() if "router" in why}
    assert len(routers) == layers * (2 if name == "qwen2_moe" else 1)
    assert not set(routers) & set(structure.quantized)
    parts = ["gate_proj", "up_proj", "down_proj"]
    if name == "moe_llava_phi":
        parts = ["fc1", "fc2"]
    holder = "model.language_model.layers"
    experts = {
        f"{holder}.{layer}.mlp.experts.{e}.{p}"
        for layer in range(layers)
        for e in range(4)
        for p in parts
    }
    assert experts <= set(structure.quantized)
    outside = set(structure.ignored) & plain
    assert set(structure.quantized) == plain - outside
    assert all(type(model.get_submodule(n)) is QuantLinear for n in experts)
    routes = [site for site in structure.sites if site.route is not None]
    assert len(routes) == layers * 4 * 2
    assert {s.route.role for s in routes if s.route} == {"mlp_in", "down_in"}
    first = structure.towers["language"].units[0].sites[0].name
    assert first == f"{holder}.0.attn_in", "the first site stands for the layer"


def test_off_is_exact_and_w4a4_differs(name, make, batches, calibrator):
    plain, _ = make(name)
    inputs = model_inputs(batches()[0], torch.device("cpu"))
    exact = plain(**inputs).logits
    made = calibrator(name)
    assert torch.equal(made.model(**inputs).logits, exact)
    made.structure.enable(True)
    noisy = made.model(**inputs).logits
    assert noisy.isfinite().all()
    assert (noisy - exact).abs().max() > 1e-3


def test_phi_reads_one_norm_with_attention_and_mlp(make):
    model, family = make("moe_llava_phi")
    dense = family.input_groups(model.model.language_model.layers[1])
    assert dense == {
        "attn_in": [*(f"self_attn.{x}_proj" for x in "qkv"), "mlp.fc1"],
        "o_in": ["self_attn.dense"],
        "down_in": ["mlp.fc2"],
    }


def test_weights_of_experts_are_quantized_one_by_one(calibrator):
    made = calibrator("qwen2_moe", count=1)
    made.structure.enable(True)
    for experts in find_experts(made.model).values():
        for expert in experts:
            row = expert.gate_proj.quantized_weight()[0]
            assert len(row.unique()) <= 16
            assert not torch.equal(row, expert.gate_proj.weight[0])


@pytest.mark.parametrize("name", ["qwen2_moe", "mixtral", "olmoe"])
def test_experts_are_found_one_by_one_in_their_checkpoint(name, tmp_path, config_of):
    LlavaForConditionalGeneration(config_of(name)).save_pretrained(tmp_path)
    family = Llava(str(tmp_path))
    wanted = family.load_model().state_dict()
    _, places = family.streamed()
    stored = Shards(places)
    assert set(places) == set(wanted)
    assert all(torch.equal(stored.read(n), t) for n, t in wanted.items())

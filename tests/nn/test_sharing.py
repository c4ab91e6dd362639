"""What quantized layers share: weights, quantizers, and work done once but never stale."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn

from qvlm_lightning.nn.adapters import add_lora
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.primitives import fake_quantize
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.quant.weights import fake_quantize_weight

W4A4 = Scheme.parse("w4a4")


def test_ties_survive(config, build, family):
    model = build(config(tied=True))
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    before = dict(model.named_parameters())
    quantize_model(model, family, W4A4)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())


def test_a_state_dict_holds_each_quantizer_tensor_once(quantized):
    model, structure = quantized()
    own = ("low", "high", "percentile", "low_ratio", "high_ratio")
    names = [name for name in model.state_dict() if name.split(".")[-1] in own]
    assert len(names) == len(own) * len(structure.sites)
    addresses = [value.data_ptr() for value in model.state_dict().values()]
    assert len(set(addresses)) == len(addresses)


def test_readers_of_one_input_share_one_quantizer(quantized):
    model, _ = quantized()
    for layer in model.model.language_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        assert attention.q_proj.site is attention.k_proj.site is attention.v_proj.site
        assert attention.q_proj.site is attention.q_proj.input_quantizer
        assert mlp.gate_proj.site is mlp.up_proj.site
        sites = [attention.q_proj.site, attention.o_proj.site, mlp.gate_proj.site]
        assert len({id(s) for s in [*sites, mlp.down_proj.site]}) == 4


def test_a_copy_is_independent_and_shares_alike(quantized, inputs):
    model, structure = quantized()
    exact = model(**inputs).logits
    clone = copy.deepcopy(model)
    assert torch.equal(clone(**inputs).logits, exact)
    attention = clone.model.language_model.layers[0].self_attn
    assert attention.q_proj.site is attention.q_proj.input_quantizer is attention.v_proj.site
    assert attention.q_proj.site is not structure.towers["language"].sites[0].quantizer
    attention.q_proj.site.set_range(torch.tensor(-0.1), torch.tensor(0.1), 1.0)
    assert not torch.equal(clone(**inputs).logits, exact)
    assert torch.equal(model(**inputs).logits, exact)


def test_a_copy_can_be_made_while_bounds_are_learned(quantized, inputs):
    model, structure = quantized()
    for site in structure.sites:
        site.quantizer.high_ratio.requires_grad_(True)
    loss = model(**inputs).logits.sum()
    clone = copy.deepcopy(model)
    loss.backward()
    assert all(s.quantizer.high_ratio.grad is not None for s in structure.sites)
    assert torch.equal(clone(**inputs).logits, model(**inputs).logits)


# --- the shared input is quantized once, and afresh when anything changes -------------------------


@pytest.fixture
def quantizations(monkeypatch) -> Counter:
    """How often each quantizer has really quantized."""
    counter: Counter = Counter()
    original = ActivationQuantizer._quantize

    def counting(self, x):
        counter[self] += 1
        return original(self, x)

    monkeypatch.setattr(ActivationQuantizer, "_quantize", counting)
    return counter


def test_each_shared_input_is_quantized_once_per_forward_pass(quantized, inputs, quantizations):
    model, structure = quantized()
    for passes in (1, 2):
        model(**inputs)
        assert [quantizations[site.quantizer] for site in structure.sites] == [passes] * len(
            structure.sites
        )


def expected(layer: QuantLinear, x: torch.Tensor) -> torch.Tensor:
    """The layer's output from its tensors, without its code."""
    low, high = layer.site.low * layer.site.low_ratio, layer.site.high * layer.site.high_ratio
    weight = fake_quantize_weight(layer.weight, 4, None, False, layer.weight_quantizer.clip_ratio)
    return nn.functional.linear(fake_quantize(x, low, high, 4), weight, layer.bias)


CHANGES = {
    "set_range": lambda q, x: q.set_range(torch.tensor(-0.5), torch.tensor(0.5), 0.99),
    "buffer": lambda q, x: q.high.fill_(0.5),
    "new buffer": lambda q, x: setattr(q, "high", torch.tensor(0.5)),
    "ratio": lambda q, x: q.high_ratio.mul_(0.25),
    "new ratio": lambda q, x: setattr(q, "low_ratio", nn.Parameter(torch.tensor(0.25))),
    "checkpoint": lambda q, x: q.load_state_dict({"low": torch.tensor(-0.5)}, strict=False),
    "input": lambda q, x: x.mul_(0.5),
    "width": lambda q, x: setattr(q, "num_bits", 4),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("readers", [1, 2, 3])
def test_a_change_between_forward_passes_is_seen(quantized, change, readers):
    """Also behind a pass that ended before every reader had taken its share."""
    _, structure = quantized()
    site = structure.towers["language"].sites[0]
    layers = list(site.linears.values())
    if change == "width":
        site.quantizer.num_bits = 3
    x = torch.randn(2, 3, 24)
    before = [layer(x) for layer in layers[:readers]]
    with torch.no_grad():
        CHANGES[change](site.quantizer, x)
    for layer, old in zip(layers, before, strict=False):
        new = layer(x)
        assert torch.equal(new, expected(layer, x))
        assert not torch.equal(new, old)


def test_the_very_same_tensor_through_the_projector_with_other_ranges(quantized):
    _, structure = quantized()
    first, second = structure.towers["projector"].sites
    projector = structure.towers["projector"].units[0].module
    x = torch.randn(1, 4, 16)
    outputs = []
    for bound in (2.0, 1.0, 0.5):
        first.quantizer.set_range(torch.tensor(-bound), torch.tensor(bound), 1.0)
        outputs.append(projector(x))
        hidden = projector.act(expected(first.leader, x))
        assert torch.equal(outputs[-1], expected(second.leader, hidden))
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


def test_switching_off_and_on_again_is_seen(quantized):
    _, structure = quantized()
    site = structure.towers["language"].sites[0]
    x = torch.randn(2, 3, 24)
    quantized_x = site.quantizer(x)
    structure.enable(False)
    assert site.quantizer(x) is x
    structure.enable(True)
    assert torch.equal(site.quantizer(x), quantized_x)


@pytest.mark.parametrize("when", ["before", "behind"])
def test_what_was_shared_without_gradients_is_not_used_with_them(quantized, when):
    _, structure = quantized()
    site = structure.towers["language"].sites[0]
    site.quantizer.high_ratio.requires_grad_(when == "before")
    x = torch.randn(2, 3, 24)
    with torch.set_grad_enabled(when == "behind"):
        site.quantizer(x)
    site.quantizer.high_ratio.requires_grad_(True)
    site.quantizer(x).sum().backward()
    assert site.quantizer.high_ratio.grad is not None


# --- the quantized weight is kept, and made afresh when anything changes --------------------------

WEIGHT_CHANGES = {
    "weight": lambda layer: layer.weight.mul_(2),
    "one weight": lambda layer: layer.weight[0, 0].fill_(9),
    "new weight": lambda layer: setattr(layer, "weight", nn.Parameter(2 * layer.weight)),
    "data of the weight": lambda layer: setattr(layer.weight, "data", 2 * layer.weight.data),
    "clip": lambda layer: layer.weight_quantizer.clip_ratio.fill_(0.5),
    "new clip": lambda layer: setattr(
        layer.weight_quantizer, "clip_ratio", nn.Parameter(0.5 * layer.weight_quantizer.clip_ratio)
    ),
    "data of the clip": lambda layer: setattr(
        layer.weight_quantizer.clip_ratio, "data", 0.5 * layer.weight_quantizer.clip_ratio
    ),
    "assigned clip": lambda layer: layer.load_state_dict(
        {"weight_quantizer.clip_ratio": 0.5 * layer.weight_quantizer.clip_ratio},
        strict=False,
        assign=True,
    ),
    "checkpoint": lambda layer: layer.load_state_dict(
        {"weight_quantizer.clip_ratio": 0.5 * layer.weight_quantizer.clip_ratio}, strict=False
    ),
}


@pytest.mark.parametrize("change", WEIGHT_CHANGES)
def test_a_change_of_the_weight_is_seen(quantized, change):
    _, structure = quantized()
    layer = structure.towers["language"].sites[1].leader
    before = layer.quantized_weight()
    assert layer.quantized_weight() is before
    with torch.no_grad():
        WEIGHT_CHANGES[change](layer)
    after = layer.quantized_weight()
    assert not torch.equal(after, before)
    clip = layer.weight_quantizer.clip_ratio
    assert torch.equal(after, fake_quantize_weight(layer.weight, 4, None, False, clip))


def test_a_change_of_an_adapter_is_seen(quantized):
    _, structure = quantized()
    layer = structure.towers["vision"].sites[0].leader
    before = layer.quantized_weight()
    add_lora(structure, rank=2, seed=0, device=layer.weight.device)
    assert torch.equal(layer.quantized_weight(), before), "a low-rank update starts at 0"
    with torch.no_grad():
        layer.adapter.b.fill_(1.0)
        after = layer.quantized_weight()
    assert not torch.equal(after, before)


def test_gradients_flow_behind_a_pass_in_inference_mode(quantized, inputs):
    """A weight kept from inference mode could not be saved for a backward pass."""
    model, structure = quantized()
    with torch.inference_mode():
        exact = model(**inputs).logits
    ratios = [site.quantizer.high_ratio.requires_grad_(True) for site in structure.sites]
    logits = model(**inputs).logits
    assert torch.equal(logits, exact)
    logits.square().sum().backward()
    assert all(ratio.grad is not None for ratio in ratios)


def test_a_model_made_in_inference_mode_runs(config, build, family, inputs):
    with torch.inference_mode():
        model = build(config())
        structure = quantize_model(model, family, W4A4)
        for site in structure.sites:
            site.quantizer.set_range(torch.tensor(-2.0), torch.tensor(2.0), 1.0)
        structure.enable(True)
        first = model(**inputs).logits
        structure.sites[0].quantizer.set_range(torch.tensor(-0.1), torch.tensor(0.1), 1.0)
        assert not torch.equal(model(**inputs).logits, first)

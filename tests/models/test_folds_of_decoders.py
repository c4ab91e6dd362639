"""Folds and rotations in decoders of other forms: fused, parallel, with experts, latent; and what
is refused because its form is not known."""

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.experts import unfuse_experts
from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.models.moe_llava import MoeLlava
from qvlm_lightning.nn.folding import folded
from qvlm_lightning.nn.parameters import made
from qvlm_lightning.nn.rotation import random_rotation, rotated, untie

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
LATENT = {
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
MIXED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
ATTENTION = {"attn_in": "input_layernorm", "o_in": "self_attn.v_proj"}
LLAMA = ATTENTION | {"mlp_in": "post_attention_layernorm", "down_in": "mlp.up_proj"}


def experts(count: int, **more: str) -> dict[str, str]:
    """Sources of the sites of experts behind the norm after the attention."""
    names = [f"mlp.experts.{i}" for i in range(count)] + list(more.values())
    return {f"{n}.mlp_in": "post_attention_layernorm" for n in names} | {
        f"{n}.down_in": f"{n}.up_proj" for n in names
    }


# name -> (configuration, sources of the last layer, why a rotation is refused or None)
DECODERS: dict[str, tuple[Any, dict[str, str], str | None]] = {
    "grouped": (hf.LlamaConfig(**SIZES), LLAMA, None),
    "fused": (
        hf.Phi3Config(**SIZES, eos_token_id=1, bos_token_id=1),
        LLAMA | {"o_in": "self_attn.qkv_proj", "down_in": "mlp.gate_up_proj"},
        None,
    ),
    "phi": (hf.PhiConfig(**SIZES), ATTENTION, None),
    "parallel": (
        hf.CohereConfig(**SIZES, eos_token_id=1, bos_token_id=1),
        ATTENTION | {"mlp_in": "input_layernorm", "down_in": "mlp.up_proj"},
        None,
    ),
    "parallel_stablelm": (
        hf.StableLmConfig(**SIZES, use_parallel_residual=True, use_qkv_bias=True),
        ATTENTION | {"mlp_in": "input_layernorm", "down_in": "mlp.up_proj"},
        None,
    ),
    "shared_expert": (
        hf.Qwen2MoeConfig(**SIZES, **MIXED, shared_expert_intermediate_size=12),
        ATTENTION | experts(4, shared="mlp.shared_expert"),
        None,
    ),
    "mixtral": (
        hf.MixtralConfig(**SIZES, num_local_experts=4),
        ATTENTION | experts(4),
        None,
    ),
    "latent": (
        hf.DeepseekV2Config(**SIZES | LATENT),
        {
            "attn_in": "input_layernorm",
            "q_in": "self_attn.q_a_layernorm",
            "kv_in": "self_attn.kv_a_layernorm",
        }
        | experts(4, shared="mlp.shared_experts"),
        None,
    ),
    "gemma2": (
        hf.Gemma2Config(**SIZES, head_dim=8),
        LLAMA | {"mlp_in": "pre_feedforward_layernorm"},
        "post_attention_layernorm scales every channel",
    ),
    "norms_behind": (
        hf.Olmo2Config(**SIZES, eos_token_id=1, bos_token_id=1),
        {"o_in": "self_attn.v_proj", "down_in": "mlp.up_proj"},
        "stand in an order that is not known",
    ),
    "experts_with_biases": (
        hf.GptOssConfig(**SIZES | {"num_local_experts": 4}, head_dim=8),
        {"o_in": "self_attn.v_proj"},
        "is in no known place",
    ),
    "norm_within_the_mlp": (
        hf.BitNetConfig(**SIZES, eos_token_id=1, bos_token_id=1),
        {"attn_in": "input_layernorm", "mlp_in": "post_attention_layernorm"},
        "attn_sub_norm.weight is in no known place",
    ),
}


class Decoder(HubFamily):
    """A language model alone."""

    decoder = "model.layers"

    def projectors(self, model: Any) -> dict[str, Any]:
        return {}


class PhiDecoder(MoeLlava):
    """Phi alone, whose attention and MLP MoE-LLaVA knows to read one norm."""

    decoder = "model.layers"

    def projectors(self, model: Any) -> dict[str, Any]:
        return {}


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def family(decoder: str) -> HubFamily:
    return (PhiDecoder if decoder == "phi" else Decoder)("nowhere")


@pytest.fixture
def model(decoder: str) -> Any:
    """A model whose every parameter matters."""
    torch.manual_seed(0)
    made = hf.AutoModelForCausalLM.from_config(DECODERS[decoder][0], dtype=torch.float32)
    for parameter in made.parameters():
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
            else:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    unfuse_experts(made)
    return made.eval().requires_grad_(False)


def logits(model: nn.Module, changed: dict[str, Tensor]) -> Tensor:
    ids = torch.arange(1, 40).reshape(3, 13)  # enough tokens for every expert
    with torch.no_grad():
        return torch.func.functional_call(model, changed, (ids,)).logits


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def test_folds_of_all_sites_leave_the_logits(decoder: str, family: Any, model: Any) -> None:
    before = logits(model, {})
    changed: dict[str, Tensor] = {}
    layers = family.decoder_layers(model)
    assert {s: x.name for s, x in family.sources(layers[-1][1]).items()} == DECODERS[decoder][1]

    def current(name: str) -> Tensor:
        return changed[name] if name in changed else model.get_parameter(name)

    for name, layer in layers:
        for source in family.sources(layer).values():
            full = source.under(name)
            columns = model.get_parameter(f"{full.readers[0]}.weight").shape[1]
            factor = (torch.randn(columns // source.repeats) * 0.7).exp()
            new = folded(model.get_submodule, current, full, factor)
            for left in new:
                rest = {other: x for other, x in (changed | new).items() if other != left}
                rest |= {left: changed[left]} if left in changed else {}
                assert distance(before, logits(model, rest)) > 1e-4, left
            changed |= new
    assert distance(before, logits(model, changed)) < 1e-5


def test_a_rotation_leaves_the_logits_or_is_refused(decoder: str, family: Any, model: Any) -> None:
    reason = DECODERS[decoder][2]
    if reason is not None:
        with pytest.raises(InputError, match=reason):
            family.residual(model)
        return
    residual = family.residual(model)
    untie(model, residual)
    before = logits(model, {})
    rotation = random_rotation(32, seed=2, keeps_mean=residual.centred)
    changed = made(rotated(model.get_submodule, model.get_parameter, residual, rotation))
    assert distance(before, logits(model, changed)) < 1e-5
    for left in changed:
        rest = {other: value for other, value in changed.items() if other != left}
        assert distance(before, logits(model, rest)) > 1e-4, left


def test_parameters_in_no_known_place_are_named() -> None:
    family = Decoder("nowhere")
    for path in ("", "model.", "model.layers.1.", "model.layers.0.mlp."):
        model = hf.AutoModelForCausalLM.from_config(DECODERS["grouped"][0])
        family.residual(model)
        model.get_submodule(path[:-1]).lone = nn.Parameter(torch.ones(32))
        with pytest.raises(InputError, match=rf": {path}lone is in no known place"):
            family.residual(model)


def test_without_weights_the_wiring_is_the_same() -> None:
    family = Decoder("nowhere")
    config = DECODERS["parallel_stablelm"][0]
    real = hf.AutoModelForCausalLM.from_config(config)
    with torch.device("meta"):
        bare = hf.AutoModelForCausalLM.from_config(config)
    assert family.residual(bare) == family.residual(real)
    assert family.residual(bare).centred
    pair = [family.decoder_layers(m)[0][1] for m in (bare, real)]
    assert family.sources(pair[0]) == family.sources(pair[1]) != {}
    assert family.attention(pair[0]) == family.attention(pair[1]) is not None

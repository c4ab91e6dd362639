"""Un-fused experts compute what transformers' fused ones do, and say which tokens they saw."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from qvlm_lightning.models.experts import (
    Experts,
    GatedExpert,
    expert_groups,
    find_experts,
    find_routers,
    unfuse_experts,
)

COMMON: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MIXTURES: dict[str, Any] = {
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **COMMON,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=12,
        num_experts=4,
        num_experts_per_tok=2,
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **COMMON, head_dim=8, moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2
    ),
    "mixtral": lambda: MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
    "olmoe": lambda: OlmoeConfig(**COMMON, num_experts=4, num_experts_per_tok=2),
    "phimoe": lambda: PhimoeConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v2": lambda: DeepseekV2Config(
        **COMMON,
        moe_intermediate_size=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    ),
}
MIXED_LAYERS = {"deepseek_v2": 1}


def make(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MIXTURES[kind](), dtype=dtype)
    model.set_experts_implementation("eager")  # the default has no float64
    for parameter in model.parameters():
        if parameter.dim() >= 2:  # the default .02 makes every layer next to nothing
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False)


def prompts() -> dict[str, Tensor]:
    ids = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


# --- by hand --------------------------------------------------------------------------------------


class Times(nn.Module):
    """Multiplies, and remembers what it was given."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        return self.factor * x


def test_every_expert_sees_its_tokens_in_order_and_nothing_else() -> None:
    experts = Experts([Times(10.0), Times(100.0), Times(1000.0)])
    hidden = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    chosen = torch.tensor([[[0, 1], [1, 0], [1, 0]], [[0, 1], [1, 0], [1, 0]]])
    chosen[1, :, :] = torch.tensor([1, 1])
    chosen[1, 2, 0] = 0
    weight = torch.tensor([0.25, 0.75]).expand(2, 3, 2)
    out = experts(hidden, chosen, weight)
    zero, one, two = experts
    assert isinstance(zero, Times)
    assert isinstance(one, Times)
    assert isinstance(two, Times)
    assert zero.given is not None
    assert zero.given[..., 0].tolist() == [[1, 2, 3], [6, 0, 0]]
    assert one.given is not None
    assert one.given[..., 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert two.given is None
    tokens = [None if t is None else t.tolist() for t in experts.tokens]
    assert tokens == [[[0, 1, 2], [2, -1, -1]], [[0, 1, 2], [0, 1, 2]], None]
    # .25 * 10 + .75 * 100 for the first token; weights of an expert chosen twice add up
    wanted = [[77.5, 65.0, 97.5], [400.0, 500.0, 6 * (0.25 * 10 + 0.75 * 100)]]
    wanted[0][1] = 2 * (0.25 * 100 + 0.75 * 10)
    wanted[0][2] = 3 * (0.25 * 100 + 0.75 * 10)
    assert out[..., 0].tolist() == wanted


def test_flattened_tokens_give_the_same() -> None:
    experts = Experts([Times(2.0), Times(3.0)])
    hidden, weight = torch.randn(2, 4, 5), torch.rand(2, 4, 1)
    chosen = torch.tensor([[[0], [1], [1], [0]], [[1], [1], [1], [1]]])
    whole = experts(hidden, chosen, weight)
    experts.note_samples(nn.Identity(), (hidden,))
    flat = experts(hidden.flatten(0, 1), chosen.flatten(0, 1), weight.flatten(0, 1))
    assert torch.equal(flat.view_as(whole), whole)
    assert experts.tokens[0] is not None
    assert experts.tokens[0].tolist() == [[0, 3], [-1, -1]]


def test_an_expert_is_the_gated_layer_it_is_said_to_be() -> None:
    gate, up, down = torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 6)
    x = torch.randn(2, 3, 4)
    expert = GatedExpert(gate, up, down, nn.SiLU())
    wanted = (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    assert torch.allclose(expert(x), wanted, atol=1e-6)
    assert {type(m) for _, m in expert.named_children()} == {nn.Linear, nn.SiLU}
    assert expert.gate_proj.weight.data_ptr() != gate.data_ptr(), "a copy frees the fused tensor"


# --- against transformers -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MIXTURES)
def test_unfused_experts_give_equal_logits(kind: str) -> None:
    model = make(kind)
    exact = model(**prompts()).logits
    names = unfuse_experts(model)
    first = MIXED_LAYERS.get(kind, 0)
    assert names == [f"model.layers.{i}.mlp.experts" for i in range(first, 2)]
    made = model(**prompts()).logits
    assert (made - exact).abs().max() < 1e-12 * exact.abs().max()
    assert not [n for n, p in model.named_parameters() if p.dim() == 3]


@pytest.mark.parametrize("kind", MIXTURES)
def test_routers_are_found_and_nothing_else(kind: str) -> None:
    model = make(kind)
    unfuse_experts(model)
    layer = model.get_submodule("model.layers.1")
    wanted = {"phimoe": ["mlp.router"], "qwen2_moe": ["mlp.gate", "mlp.shared_expert_gate"]}
    assert find_routers(layer) == wanted.get(kind, ["mlp.gate"])
    assert find_routers(layer.get_submodule("self_attn")) == []


def test_groups_of_experts_and_of_the_shared_expert() -> None:
    model = make("qwen2_moe")
    unfuse_experts(model)
    layer = model.get_submodule("model.layers.0")
    groups = expert_groups(layer)
    owners = [*(f"mlp.experts.{i}" for i in range(4)), "mlp.shared_expert"]
    assert list(groups) == [f"{o}.{site}" for o in owners for site in ("mlp_in", "down_in")]
    assert groups["mlp.experts.2.mlp_in"] == [f"mlp.experts.2.{x}_proj" for x in ("gate", "up")]
    assert groups["mlp.shared_expert.down_in"] == ["mlp.shared_expert.down_proj"]
    assert expert_groups(layer.get_submodule("self_attn")) == {}


def test_generation_copies_and_reloads_are_equal(tmp_path) -> None:
    model = make("qwen2_moe", torch.float32)
    unfuse_experts(model)
    exact = model(**prompts()).logits
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**prompts()).logits, exact)
    for experts in find_experts(twin).values():
        experts[0].down_proj.weight.zero_()
    assert not torch.equal(twin(**prompts()).logits, exact)
    assert torch.equal(model(**prompts()).logits, exact), "the copy's experts are its own"
    whole = model.generate(**prompts(), max_new_tokens=4, do_sample=False)
    assert whole.shape == (3, 11)
    model.save_pretrained(tmp_path)
    fused, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.allclose(fused.eval()(**prompts()).logits, exact, atol=1e-5)


def test_gradients_reach_the_tokens_and_the_weights() -> None:
    model = make("mixtral").requires_grad_(True)
    loss = model(**prompts()).logits.square().sum()
    wanted = torch.autograd.grad(loss, model.model.embed_tokens.weight)[0]
    unfuse_experts(model)
    model.model.embed_tokens.weight.grad = None
    model(**prompts()).logits.square().sum().backward()
    assert torch.allclose(model.model.embed_tokens.weight.grad, wanted, rtol=1e-9, atol=1e-9)
    experts = find_experts(model)["model.layers.0.mlp.experts"]
    assert all(e.down_proj.weight.grad is not None for e in experts)


# --- what is refused ------------------------------------------------------------------------------


def test_experts_of_another_form_are_left_alone() -> None:
    config = GptOssConfig(**COMMON, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert unfuse_experts(model) == []
    assert find_experts(model) == {}

"""Sites of decoders whose Linear layers have other names: in forward order, shared where shared."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, DeepseekV2Config, Phi3Config, PhiConfig

from qvlm_lightning.models.llava import Llava

SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
LATENT = {
    "num_key_value_heads": 2,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
DECODERS = {
    "phi3": (Phi3Config(**SIZES), ["attn_in", "o_in", "mlp_in", "down_in"]),
    "phi": (PhiConfig(**SIZES), ["attn_in", "o_in", "mlp_in", "down_in"]),
    "latent": (
        DeepseekV2Config(**SIZES, **LATENT, q_lora_rank=None),
        ["attn_in", "kv_in", "o_in", "mlp_in", "down_in"],
    ),
    "latent_queries": (
        DeepseekV2Config(**SIZES, **LATENT, q_lora_rank=8),
        ["attn_in", "q_in", "kv_in", "o_in", "mlp_in", "down_in"],
    ),
}


@pytest.mark.parametrize("kind", DECODERS)
def test_sites_stand_in_forward_order_and_share_what_is_shared(kind: str) -> None:
    config, expected = DECODERS[kind]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    layer = model.model.layers[0]
    groups = Llava("nowhere").input_groups(layer)
    assert list(groups) == expected
    read: dict[str, torch.Tensor] = {}
    for name, module in layer.named_modules():
        if type(module) is nn.Linear:
            module.register_forward_pre_hook(
                lambda _, args, name=name: read.__setitem__(name, args[0])
            )
    with torch.no_grad():
        model(torch.tensor([[3, 4, 5]]))
    assert sorted(read) == sorted(name for names in groups.values() for name in names)
    for names in groups.values():
        assert len({id(read[name]) for name in names}) == 1
    order = list(read)
    assert sorted(groups, key=lambda site: order.index(groups[site][0])) == list(groups)

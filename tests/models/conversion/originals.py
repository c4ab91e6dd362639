"""What the authors of LLaVA and MoE-LLaVA publish, from random parts, and what these parts compute
when they are put together by hand.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

WIDTH, INNER, LAYERS, HEADS, SIDE, PATCH = 16, 24, 4, 2, 16, 8
TOWER = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "projection_dim": 8,
}
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE_LAYERS, EXPERTS = [0, 2], 4


@dataclass
class Original:
    """A checkpoint in parts.

    Attributes:
        settings: the authors' config.json.
        weights: under the authors' names, without the tower.
        tower: a CLIP tower.
        project: the projector.
        embed: the embedding.
        decode: from embeddings [1, T, D] to logits [1, T, V].
        vocabulary: size of the authors' tokenizer.
    """

    settings: dict[str, Any]
    weights: dict[str, Tensor]
    tower: Any
    project: nn.Module
    embed: Any
    decode: Any
    vocabulary: int

    @torch.no_grad()
    def logits(self, before: list[int], image: Tensor, behind: list[int]) -> Tensor:
        """Return [T, V] of tokens, an image [3, S, S] and tokens."""
        states = self.tower(image[None], output_hidden_states=True).hidden_states
        seen = self.project(states[-2][:, 1:])
        first, last = (self.embed(torch.tensor([part])) for part in (before, behind))
        return self.decode(torch.cat([first, seen, last], dim=1))[0]


def randomise(*modules: nn.Module) -> None:
    for module in modules:
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            std = parameter.shape[-1] ** -0.5 if parameter.dim() >= 2 else 0.2
            nn.init.normal_(parameter, std=std, mean=0.0 if parameter.dim() >= 2 else 0.5)


def make_tower() -> CLIPVisionModel:
    tower = CLIPVisionModel(CLIPVisionConfig(**TOWER))
    randomise(tower)
    return tower


def mlp_projector() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))


def llava(single: bool, vocabulary: int) -> Original:
    """LLaVA-1.5, or with a projector of one layer 1.3."""
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": vocabulary, "rms_norm_eps": 1e-5}
    language = LlamaForCausalLM(LlamaConfig(**text))
    projector = nn.Linear(8, WIDTH) if single else mlp_projector()
    randomise(language, projector)
    settings = {
        **text,
        "model_type": "llava",
        "architectures": ["LlavaLlamaForCausalLM"],
        "hidden_act": "silu",
        "mm_vision_tower": "openai/clip-vit-large-patch14",
        "mm_hidden_size": 8,
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": single,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    if not single:
        settings |= {
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_feature": "patch",
            "image_aspect_ratio": "pad",
        }
    weights = dict(language.state_dict())
    weights |= {f"model.mm_projector.{n}": t for n, t in projector.state_dict().items()}
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    embed = language.get_input_embeddings()
    return Original(
        settings,
        weights,
        make_tower(),
        projector,
        embed,
        lambda x: language(inputs_embeds=x).logits,
        vocabulary,
    )


class SlowTop2(nn.Module):
    """What the authors' gating computes without noise and capacity, token by token."""

    def __init__(self, mlp: nn.Module, gate: Tensor, experts: list[nn.Module]) -> None:
        super().__init__()
        self.gate, self.experts = gate, nn.ModuleList(experts)

    def forward(self, hidden: Tensor) -> Tensor:
        out = torch.zeros_like(hidden)
        for row in range(hidden.shape[0]):
            for place in range(hidden.shape[1]):
                x = hidden[row, place]
                rates = [math.exp(float(w @ x)) for w in self.gate]
                gates = [r / sum(rates) for r in rates]
                first = max(range(len(gates)), key=lambda e: gates[e])
                second = max((e for e in range(len(gates)) if e != first), key=lambda e: gates[e])
                total = gates[first] + gates[second]
                for e in (first, second):
                    out[row, place] += gates[e] / total * self.experts[e](x)
        return out


def mixture(language: Any) -> dict[str, Tensor]:
    """Give a decoder experts, return its weights under the authors' names."""
    for index in MOE_LAYERS:
        layer = language.model.layers[index]
        copies = [type(layer.mlp)(language.config) for _ in range(EXPERTS)]
        randomise(*copies)
        layer.mlp = SlowTop2(layer.mlp, torch.randn(EXPERTS, WIDTH), copies)
    weights = {}
    for name, tensor in language.state_dict().items():
        old = ".mlp.experts."
        new = ".mlp.deepspeed_moe.experts.deepspeed_experts."
        weights[name.replace(old, new)] = tensor
    for index in MOE_LAYERS:
        name = f"model.layers.{index}.mlp.deepspeed_moe.gate.wg.weight"
        weights[name] = language.model.layers[index].mlp.gate
    return weights


MOE_SETTINGS: dict[str, Any] = {
    "moe": {
        "moe_enable": True,
        "moe_mode": "sparse",
        "moe_layers_idx": MOE_LAYERS,
        "num_experts": [EXPERTS, EXPERTS],
        "top_k_experts": 2,
        "use_residual": False,
        "capacity_factor": 1.5,
        "eval_capacity_factor": 2.0,
        "min_capacity": 0,
        "ep_size": 1,
        "router_aux_loss_coef": 0.01,
        "train_modules": ["gate_proj"],
    },
    "mm_image_tower": "openai/clip-vit-large-patch14-336",
    "image_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_hidden_size": 8,
    "image_aspect_ratio": "pad",
    "torch_dtype": "float32",
}


def moe_llava(kind: str, vocabulary: int) -> Original:
    """MoE-LLaVA with a StableLM or Phi decoder."""
    torch.manual_seed(1)
    text = {**TEXT, "vocab_size": vocabulary}
    if kind == "stablelm":
        settings = {**text, "rope_pct": 0.25, "norm_eps": 1e-5, "use_qkv_bias": True}
        language: Any = StableLmForCausalLM(
            StableLmConfig(**text, use_qkv_bias=True, partial_rotary_factor=0.25)
        )
    else:
        settings = {**text, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5}
        settings |= {"hidden_act": "gelu_new", "qk_layernorm": False}
        language = PhiForCausalLM(PhiConfig(**text, partial_rotary_factor=0.5))
        language.lm_head.bias = None  # as the authors did
    projector = mlp_projector()
    randomise(language, projector)
    weights = mixture(language)
    weights |= {
        f"model.mm_projector.image_spatial_proj.{n}": t for n, t in projector.state_dict().items()
    }
    return Original(
        {**settings, **MOE_SETTINGS, "model_type": f"moe_llava_{kind}"},
        weights,
        make_tower(),
        projector,
        language.get_input_embeddings(),
        lambda x: language(inputs_embeds=x).logits,
        vocabulary,
    )

"""Names and settings of original checkpoints, by hand; Qwen-1.8B against its arithmetic."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.conversion import convert
from qvlm_lightning.models.moe_llava import MoeLlava
from qvlm_lightning.models.original_layout import LAYOUTS, layout_of, mixture_of

# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("llava", "lm_head.weight", "lm_head.weight"),
        ("llava", "model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("llava", "model.norm.weight", "model.language_model.norm.weight"),
        ("llava", "model.mm_projector.weight", "model.multi_modal_projector.linear_1.weight"),
        ("llava", "model.mm_projector.2.bias", "model.multi_modal_projector.linear_2.bias"),
        (
            "llava",
            "model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight",
            "model.vision_tower.encoder.layers.3.mlp.fc1.weight",
        ),
        (
            "moe_llava_stablelm",
            "model.image_tower.image_tower.vision_model.pre_layrnorm.bias",
            "model.vision_tower.pre_layrnorm.bias",
        ),
        (
            "moe_llava_stablelm",
            "model.mm_projector.image_spatial_proj.0.weight",
            "model.multi_modal_projector.linear_1.weight",
        ),
        (
            "moe_llava_stablelm",
            "model.layers.0.mlp.deepspeed_moe.gate.wg.weight",
            "model.language_model.layers.0.mlp.router.weight",
        ),
        (
            "moe_llava_stablelm",
            "model.layers.22.mlp.deepspeed_moe.experts.deepspeed_experts.3.up_proj.weight",
            "model.language_model.layers.22.mlp.experts.3.up_proj.weight",
        ),
        (
            "moe_llava_phi",
            "model.layers.0.mlp.deepspeed_moe.experts.deepspeed_experts.1.fc2.bias",
            "model.language_model.layers.0.mlp.experts.1.fc2.bias",
        ),
        (
            "moe_llava_qwen",
            "transformer.h.1.attn.c_proj.weight",
            "model.language_model.layers.1.self_attn.o_proj.weight",
        ),
        (
            "moe_llava_qwen",
            "transformer.h.0.mlp.deepspeed_moe.experts.deepspeed_experts.2.c_proj.weight",
            "model.language_model.layers.0.mlp.experts.2.down_proj.weight",
        ),
        ("moe_llava_qwen", "transformer.ln_f.weight", "model.language_model.norm.weight"),
        ("moe_llava_qwen", "transformer.wte.weight", "model.language_model.embed_tokens.weight"),
    ],
)
def test_names_by_hand(kind: str, old: str, new: str) -> None:
    tensor = torch.zeros(2)
    found = LAYOUTS[kind].rename(old, tensor)
    assert found is not None
    assert [name for name, _ in found] == [new]
    assert found[0][1] is tensor


def test_what_is_not_stored_and_what_is_unknown() -> None:
    rename = LAYOUTS["llava"].rename
    assert rename("model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(2)) == []
    assert rename("optimizer.step", torch.zeros(2)) is None
    assert rename("lm_head.bias", torch.zeros(2)) is None


def test_one_matrix_of_q_k_and_v_becomes_three() -> None:
    tensor = torch.arange(6.0)[:, None]
    found = LAYOUTS["moe_llava_qwen"].rename("transformer.h.1.attn.c_attn.weight", tensor)
    assert found is not None
    layer = "model.language_model.layers.1.self_attn"
    assert [(n, t.flatten().tolist()) for n, t in found] == [
        (f"{layer}.q_proj.weight", [0, 1]),
        (f"{layer}.k_proj.weight", [2, 3]),
        (f"{layer}.v_proj.weight", [4, 5]),
    ]


def test_settings_of_a_stablelm() -> None:
    given = {"hidden_size": 8, "rope_pct": 0.25, "norm_eps": 1e-5, "unknown": 1}
    assert LAYOUTS["moe_llava_stablelm"].text(given) == {
        "model_type": "stablelm",
        "use_qkv_bias": True,
        "hidden_size": 8,
        "partial_rotary_factor": 0.25,
        "layer_norm_eps": 1e-5,
    }


def test_a_dense_model_has_no_mixture() -> None:
    assert mixture_of({}, "x") == {}
    assert mixture_of({"moe": {"moe_enable": False}}, "x") == {}


def test_layouts_that_are_not_known() -> None:
    with pytest.raises(InputError, match="x holds a None checkpoint; allowed: 'llava', "):
        layout_of({}, "x")


# --- Qwen-1.8B ------------------------------------------------------------------------------------

WIDTH, INNER, HEADS, VOCABULARY, EXPERTS = 16, 12, 2, 30, 4


def slow_qwen(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the logits [T, V] of Qwen-1.8B's formulas for embeddings [T, D], in float64.

    RMSNorm; q, k and v in one matrix; rotary positions on whole heads, halves turned against each
    other; ``c_proj(w1(x) * silu(w2(x)))``; in layer 0 the mixture of MoE-LLaVA.
    """
    w = {name.removeprefix("transformer."): t.double() for name, t in weights.items()}
    x = x.double()
    length, size = x.shape[0], WIDTH // HEADS

    def norm(y: Tensor, name: str) -> Tensor:
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    def turned(y: Tensor) -> Tensor:
        out = torch.empty_like(y)
        half = size // 2
        for t in range(length):
            for i in range(half):
                angle = torch.tensor(t * 10000.0 ** (-2 * i / size), dtype=torch.float64)
                a, b = y[t, i], y[t, i + half]
                out[t, i] = a * angle.cos() - b * angle.sin()
                out[t, i + half] = b * angle.cos() + a * angle.sin()
        return out

    def mlp(y: Tensor, name: str) -> Tensor:
        inner = (w[f"{name}.w1.weight"] @ y) * nn.functional.silu(w[f"{name}.w2.weight"] @ y)
        return w[f"{name}.c_proj.weight"] @ inner

    def mixed(y: Tensor, name: str) -> Tensor:
        gate = (w[f"{name}.gate.wg.weight"] @ y).softmax(0)
        first, second = gate.sort(descending=True).indices[:2].tolist()
        experts = f"{name}.experts.deepspeed_experts"
        parts = [gate[e] * mlp(y, f"{experts}.{e}") for e in (first, second)]
        return (parts[0] + parts[1]) / (gate[first] + gate[second])

    for layer in range(2):
        h = f"h.{layer}"
        both = norm(x, f"{h}.ln_1") @ w[f"{h}.attn.c_attn.weight"].T + w[f"{h}.attn.c_attn.bias"]
        q, k, v = both.split(WIDTH, dim=-1)
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            rate = turned(q[:, part]) @ turned(k[:, part]).T / size**0.5
            rate = rate.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            heads.append(rate.softmax(-1) @ v[:, part])
        x = x + torch.cat(heads, dim=-1) @ w[f"{h}.attn.c_proj.weight"].T
        inner = norm(x, f"{h}.ln_2")
        form, name = (mlp, f"{h}.mlp") if layer else (mixed, f"{h}.mlp.deepspeed_moe")
        x = x + torch.stack([form(y, name) for y in inner])
    return norm(x, "ln_f") @ w["lm_head.weight"].T


def qwen_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCABULARY, WIDTH),
        "transformer.ln_f.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    for layer in range(2):
        h = f"transformer.h.{layer}"
        shapes |= {f"{h}.{n}.weight": (WIDTH,) for n in ("ln_1", "ln_2")}
        shapes[f"{h}.attn.c_attn.weight"] = (3 * WIDTH, WIDTH)
        shapes[f"{h}.attn.c_attn.bias"] = (3 * WIDTH,)
        shapes[f"{h}.attn.c_proj.weight"] = (WIDTH, WIDTH)
        experts = f"{h}.mlp.deepspeed_moe.experts.deepspeed_experts"
        owners = [f"{h}.mlp"] if layer else [f"{experts}.{e}" for e in range(EXPERTS)]
        for owner in owners:
            shapes |= {f"{owner}.{n}.weight": (INNER, WIDTH) for n in ("w1", "w2")}
            shapes[f"{owner}.c_proj.weight"] = (WIDTH, INNER)
    shapes["transformer.h.0.mlp.deepspeed_moe.gate.wg.weight"] = (EXPERTS, WIDTH)
    return {n: torch.randn(s) * s[-1] ** -0.5 for n, s in shapes.items()}


def test_qwen_is_qwen2_under_other_names(tmp_path, words) -> None:
    weights = qwen_weights()
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )
    prefix = "transformer.image_tower.image_tower.vision_model."
    stored = weights | {prefix + n: t for n, t in tower.state_dict().items()}
    projector = "transformer.mm_projector.image_spatial_proj"
    for name, width in (("0", 8), ("2", WIDTH)):
        stored[f"{projector}.{name}.weight"] = torch.randn(WIDTH, width)
        stored[f"{projector}.{name}.bias"] = torch.randn(WIDTH)
    stored["transformer.rotary_emb.inv_freq"] = torch.ones(4)
    source, clip = tmp_path / "in", tmp_path / "clip"
    source.mkdir()
    torch.save(stored, source / "pytorch_model.bin")
    clip.mkdir()
    tower.config.save_pretrained(clip)
    settings: dict[str, Any] = {
        "model_type": "moe_llava_qwen",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * INNER,  # both halves of the gated MLP, as there
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "kv_channels": WIDTH // HEADS,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "max_position_embeddings": 64,
        "moe": {
            "moe_enable": True,
            "moe_layers_idx": [0],
            "num_experts": [EXPERTS],
            "top_k_experts": 2,
        },
        "mm_image_tower": "clip",
        "image_projector_type": "mlp2x_gelu",
    }
    (source / "config.json").write_text(json.dumps(settings))
    convert(source, tmp_path / "out", vision_tower=clip, tokenizer=words)
    model: Any = MoeLlava(str(tmp_path / "out")).load_model()
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    found = model(input_ids=ids).logits[0, :, :VOCABULARY]
    wanted = slow_qwen(weights, weights["transformer.wte.weight"][ids[0]])
    assert torch.allclose(found.double(), wanted, atol=1e-5)

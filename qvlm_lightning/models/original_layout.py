"""What a checkpoint in its authors' layout is in transformers' terms: configuration and names.

One :class:`Layout` per ``model_type`` of the authors' ``config.json``. Names of weights are turned
into those of the model in memory; sources are named at each.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qvlm_lightning.errors import InputError

Settings = Mapping[str, Any]
Named = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Layout:
    """How one kind of original checkpoint is read.

    Attributes:
        text: makes the keyword arguments of the decoder's configuration, ``model_type`` included,
            from the original settings.
        rename: makes the model's tensors of one original tensor; none for what the model does not
            store; ``None`` for a name that it does not know.
        tower_key: setting that refers to the vision tower.
        projector_key: setting that tells the kind of projector.
        system: first words of every conversation.
        end: what ends an answer.
    """

    text: Callable[[Settings], dict[str, Any]]
    rename: Callable[[str, Tensor], Named | None]
    tower_key: str = "mm_vision_tower"
    projector_key: str = "mm_projector_type"
    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    end: str = "</s>"


def picked(settings: Settings, *names: str, **renamed: str) -> dict[str, Any]:
    """Return those of ``names`` that the settings hold, and ``new="old"`` ones under new names."""
    pairs = {**{name: name for name in names}, **renamed}
    return {new: settings[old] for new, old in pairs.items() if settings.get(old) is not None}


_COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)

_NOT_STORED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$|\.masked_bias$")
_TOWER = re.compile(r"^(?:vision_tower|image_tower)\.(?:vision_tower|image_tower)\.vision_model\.")
_PROJECTOR = re.compile(r"^mm_projector\.(?:image_spatial_proj\.)?(?:(\d)\.)?(weight|bias)$")
_MIXTURE = (
    (".mlp.deepspeed_moe.gate.wg.", ".mlp.router."),
    (".mlp.deepspeed_moe.experts.deepspeed_experts.", ".mlp.experts."),
)


def vision_and_projector(name: str) -> str | None:
    """Return the model's name of a tower or projector weight, without the leading ``model.``.

    The tower may be part of the checkpoint (``vision_tower.vision_tower.vision_model.``, in
    MoE-LLaVA ``image_tower.image_tower.vision_model.``). A projector of one layer has no number.
    """
    if tower := _TOWER.match(name):
        return f"model.vision_tower.{name[tower.end() :]}"
    if projector := _PROJECTOR.match(name):
        layer = {None: "linear_1", "0": "linear_1", "2": "linear_2"}.get(projector[1])
        return layer and f"model.multi_modal_projector.{layer}.{projector[2]}"
    return None


def decoder_names(*replaced: tuple[str, str], root: str = "model.") -> Callable[..., Named | None]:
    """Return a renaming for decoders whose layers transformers names alike.

    Args:
        replaced: further (old, new) parts of names.
        root: what the names of all but the output head begin with.
    """

    def rename(name: str, tensor: Tensor) -> Named | None:
        if _NOT_STORED.search(name):
            return []
        if name.startswith("lm_head."):
            # Phi's own head has a bias, of MoE-LLaVA's it was taken away
            return [(name, tensor)] if name.endswith(".weight") else None
        if not name.startswith(root):
            return None
        inner = name.removeprefix(root)
        seen = vision_and_projector(inner)
        if seen is not None:
            return [(seen, tensor)]
        for old, new in (*_MIXTURE, *replaced):
            inner = inner.replace(old, new)
        return [(f"model.language_model.{inner}", tensor)]

    return rename


def _qwen_names(name: str, tensor: Tensor) -> Named | None:
    """Rename Qwen-1.8B's weights: the same arithmetic as Qwen2 under other names, with q, k and v
    in one matrix and the halves of the gated MLP called ``w2`` (gate) and ``w1``.
    """
    plain = decoder_names(
        ("wte.", "embed_tokens."),
        ("ln_f.", "norm."),
        (".ln_1.", ".input_layernorm."),
        (".ln_2.", ".post_attention_layernorm."),
        (".attn.c_proj.", ".self_attn.o_proj."),
        (".w1.", ".up_proj."),
        (".w2.", ".gate_proj."),
        (".c_proj.", ".down_proj."),
        root="transformer.",
    )
    found = plain(re.sub(r"^transformer\.h\.", "transformer.layers.", name), tensor)
    if not found or ".attn.c_attn." not in name:
        return found
    parts = zip("qkv", tensor.chunk(3, dim=0), strict=True)
    return [(found[0][0].replace(".attn.c_attn.", f".self_attn.{x}_proj."), t) for x, t in parts]


def _llama(settings: Settings) -> dict[str, Any]:
    more = ("intermediate_size", "rms_norm_eps", "hidden_act", "rope_theta", "rope_scaling")
    return {"model_type": "llama", **picked(settings, *_COMMON, *more)}


def _stablelm(settings: Settings) -> dict[str, Any]:
    more = ("intermediate_size", "hidden_act", "rope_theta", "use_qkv_bias")
    renamed = {"partial_rotary_factor": "rope_pct", "layer_norm_eps": "norm_eps"}
    defaults = {"use_qkv_bias": True}  # of the authors' configuration class
    return {"model_type": "stablelm", **defaults, **picked(settings, *_COMMON, *more, **renamed)}


def _phi(settings: Settings) -> dict[str, Any]:
    more = ("intermediate_size", "hidden_act", "rope_theta", "partial_rotary_factor")
    return {
        "model_type": "phi",
        **picked(settings, *_COMMON, *more, "layer_norm_eps", "qk_layernorm"),
    }


def _qwen(settings: Settings) -> dict[str, Any]:
    renamed = {"rms_norm_eps": "layer_norm_epsilon", "rope_theta": "rotary_emb_base"}
    found = picked(settings, *_COMMON, **renamed)
    # the original counts both halves of the gated MLP
    found["intermediate_size"] = settings["intermediate_size"] // 2
    found["num_key_value_heads"] = settings["num_attention_heads"]
    return {"model_type": "qwen2", **found}


_MOE_KEYS = {"tower_key": "mm_image_tower", "projector_key": "image_projector_type"}
_LLAVA = Layout(_llama, decoder_names())

# Source of the names: haotian-liu/LLaVA and PKU-YuanGroup/MoE-LLaVA@6cb5f66, model classes.
LAYOUTS: dict[str, Layout] = {
    "llava": _LLAVA,
    "llava_llama": _LLAVA,
    "moe_llava_stablelm": Layout(_stablelm, decoder_names(), **_MOE_KEYS, end="<|endoftext|>"),
    "moe_llava_phi": Layout(_phi, decoder_names(), **_MOE_KEYS, end="<|endoftext|>"),
    "moe_llava_qwen": Layout(_qwen, _qwen_names, **_MOE_KEYS, end="<|endoftext|>"),
}


def layout_of(settings: Settings, where: str) -> Layout:
    """Return the layout of a checkpoint.

    Args:
        settings: the content of its ``config.json``.
        where: what to call the folder.

    Raises:
        InputError: it has no original layout that is known, or is in transformers' already.
    """
    kind = settings.get("model_type")
    if "vision_config" in settings:
        raise InputError(f"{where} is in the Hugging Face layout already; use it as it is")
    if kind not in LAYOUTS:
        allowed = ", ".join(map(repr, LAYOUTS))
        raise InputError(f"{where} holds a {kind!r} checkpoint; allowed: {allowed}")
    return LAYOUTS[kind]


def mixture_of(settings: Settings, where: str) -> dict[str, list[int]]:
    """Return ``moe_layers`` and ``num_experts``, or nothing for a dense model.

    Raises:
        InputError: a kind of mixture that the model here does not have.
    """
    moe = settings.get("moe")
    if not isinstance(moe, Mapping) or not moe.get("moe_enable"):
        return {}
    if moe.get("use_residual"):
        raise InputError(f"{where} has residual experts (use_residual); allowed: without")
    if moe.get("top_k_experts") != 2:
        given = moe.get("top_k_experts")
        raise InputError(f"{where} sends a token to {given!r} experts (top_k_experts); allowed: 2")
    layers, experts = moe.get("moe_layers_idx"), moe.get("num_experts")
    if not isinstance(layers, list) or not isinstance(experts, list) or len(layers) != len(experts):
        raise InputError(
            f"{where} has moe_layers_idx {layers!r} and num_experts {experts!r}; needed are two "
            "lists of equal length"
        )
    return {"moe_layers": layers, "num_experts": experts}

"""A full-precision GGUF file of a model's decoder, as llama.cpp's converter would write it.

Written apart from the package: names spelled out, rows of queries and keys moved one by one.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def moved(rows: Tensor, heads: int) -> Tensor:
    """Row r of a head's first half goes to 2r, row r of its second half to 2r + 1."""
    size = rows.shape[0] // heads
    made = torch.empty_like(rows)
    for head in range(heads):
        for row in range(size // 2):
            made[head * size + 2 * row] = rows[head * size + row]
            made[head * size + 2 * row + 1] = rows[head * size + size // 2 + row]
    return made


def file_names(model: Any) -> dict[str, tuple[str, int | None]]:
    """Return name of a weight -> (its name in the file, heads whose rows are moved)."""
    config = model.config.get_text_config()
    found: dict[str, tuple[str, int | None]] = {
        "model.language_model.embed_tokens.weight": ("token_embd.weight", None),
        "model.language_model.norm.weight": ("output_norm.weight", None),
    }
    if not config.tie_word_embeddings:
        found["lm_head.weight"] = "output.weight", None
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for ours, theirs in LAYER.items():
            name = f"model.language_model.layers.{layer}.{ours}.weight"
            found[name] = f"blk.{layer}.{theirs}.weight", heads.get(theirs)
    return found


def write_base(path: Path, model: Any, dtype: Any = np.float16, **changes: Any) -> Path:
    """Write the file.

    Args:
        path: the file.
        model: full-precision model.
        dtype: of matrices; vectors are float32.
        changes: other values of settings, by name.
    """
    config = model.config.get_text_config()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(changes.get("blocks", config.num_hidden_layers))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_token_list(["a", "b"])
    state = model.state_dict()
    for name, (told, heads) in file_names(model).items():
        value = state[name].float()
        value = value if heads is None else moved(value, heads)
        made = value.numpy().astype(np.float32 if value.dim() == 1 else dtype)
        writer.add_tensor(told, made)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

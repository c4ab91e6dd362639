"""The Qwen line: packed patches."""

from typing import Any

import transformers as hf

from qvlm_lightning.models.processors import image_only
from tests.models.small.parts import CHAT, TEXT, Small, ids_of, special_ids, tokenizer


def qwen_tokens() -> Any:
    return tokenizer(
        "<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )


def qwen_ids(tok: Any) -> dict[str, int]:
    return ids_of(
        tok,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )


def qwen(kind: str, processor: Any, config: Any, text: Any, vision: Any, patch: int) -> Small:
    tok = qwen_tokens()
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    if kind == "qwen3_vl":
        rope["mrope_interleaved"] = True
    made = config(
        text_config=text(**TEXT, **special_ids(tok), rope_parameters=rope).to_dict(),
        vision_config=vision.to_dict(),
        **qwen_ids(tok),
        tie_word_embeddings=False,
    )
    return Small(
        kind,
        made,
        image_only(processor)(
            image_processor=hf.Qwen2VLImageProcessorPil(
                patch_size=patch,
                merge_size=2,
                temporal_patch_size=2,
                size={"shortest_edge": 256, "longest_edge": 1024},
            ),
            tokenizer=tok,
            chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
        ),
    )


def qwen2_vl() -> Small:
    from transformers.models.qwen2_vl.configuration_qwen2_vl import (
        Qwen2VLTextConfig,
        Qwen2VLVisionConfig,
    )

    vision = Qwen2VLVisionConfig(
        depth=2, embed_dim=24, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=8
    )
    return qwen(
        "qwen2_vl", hf.Qwen2VLProcessor, hf.Qwen2VLConfig, Qwen2VLTextConfig, vision, patch=8
    )


def qwen2_5_vl() -> Small:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
        Qwen2_5_VLTextConfig,
        Qwen2_5_VLVisionConfig,
    )

    vision = Qwen2_5_VLVisionConfig(
        depth=2,
        hidden_size=24,
        out_hidden_size=32,
        intermediate_size=40,
        num_heads=2,
        patch_size=8,
        window_size=16,
        fullatt_block_indexes=[1],
    )
    return qwen(
        "qwen2_5_vl",
        hf.Qwen2_5_VLProcessor,
        hf.Qwen2_5_VLConfig,
        Qwen2_5_VLTextConfig,
        vision,
        patch=8,
    )


def qwen3_vl() -> Small:
    from transformers.models.qwen3_vl.configuration_qwen3_vl import (
        Qwen3VLTextConfig,
        Qwen3VLVisionConfig,
    )

    vision = Qwen3VLVisionConfig(
        depth=3,
        hidden_size=24,
        out_hidden_size=32,
        intermediate_size=40,
        num_heads=2,
        patch_size=8,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0],
    )
    return qwen(
        "qwen3_vl", hf.Qwen3VLProcessor, hf.Qwen3VLConfig, Qwen3VLTextConfig, vision, patch=8
    )

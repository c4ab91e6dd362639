"""LLaVA and its successors."""

import transformers as hf

from qvlm_lightning.models.moe_llava_model import MoeLlavaConfig
from qvlm_lightning.models.processors import image_only
from tests.models.small.parts import (
    CHAT,
    SIDE,
    TEXT,
    TILES,
    TOWER,
    Small,
    clip,
    siglip,
    special_ids,
    tokenizer,
)


def llava() -> Small:
    tok = tokenizer("<image>")
    config = hf.LlavaConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**TEXT, **special_ids(tok)),
        image_token_index=tok.image_token_id,
        image_seq_length=4,
    )
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIDE),
        tokenizer=tok,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return Small("llava", config, processor)


def moe_llava() -> Small:
    plain = llava()
    tok = plain.processor.tokenizer
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    config = MoeLlavaConfig(
        vision_config=clip(),
        text_config=hf.StableLmConfig(**text, **special_ids(tok), use_qkv_bias=True),
        image_token_index=tok.image_token_id,
        image_seq_length=4,
        moe_layers=[0],
        num_experts=[4],
    )
    return Small("moe_llava", config, plain.processor)


def llava_siglip() -> Small:
    tok = tokenizer("<image>")
    config = hf.LlavaConfig(
        vision_config=siglip(3),
        text_config=hf.Qwen2Config(**TEXT, **special_ids(tok)),
        image_token_index=tok.image_token_id,
        vision_feature_select_strategy="full",
        image_seq_length=4,
    )
    processor = hf.LlavaProcessor(
        image_processor=hf.SiglipImageProcessorPil(size=SIDE),
        tokenizer=tok,
        patch_size=8,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return Small("llava", config, processor)


def llava_dinov2() -> Small:
    tok = tokenizer("<image>")
    tower = {name: value for name, value in TOWER.items() if name != "intermediate_size"}
    config = hf.LlavaConfig(
        vision_config=hf.Dinov2Config(
            **tower, mlp_ratio=2, num_hidden_layers=3, image_size=SIDE["height"], patch_size=8
        ),
        text_config=hf.LlamaConfig(**TEXT, **special_ids(tok), tie_word_embeddings=True),
        image_token_index=tok.image_token_id,
        image_seq_length=4,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return Small("llava", config, llava().processor)


def llava_next() -> Small:
    tok = tokenizer("<image>")
    config = hf.LlavaNextConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**TEXT, **special_ids(tok)),
        image_token_index=tok.image_token_id,
        image_grid_pinpoints=TILES,
        image_seq_length=4,
    )
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 16}, crop_size=SIDE, image_grid_pinpoints=TILES
        ),
        tokenizer=tok,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return Small("llava_next", config, processor)


def llava_onevision() -> Small:
    tok = tokenizer("<image>", video_token="<video>")
    config = hf.LlavaOnevisionConfig(
        vision_config=siglip(2, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT, **special_ids(tok)),
        image_token_index=tok.image_token_id,
        video_token_index=tok.video_token_id,
        image_grid_pinpoints=TILES,
        vision_aspect_ratio="anyres_max_9",
    )
    processor = image_only(hf.LlavaOnevisionProcessor)(
        image_processor=hf.LlavaOnevisionImageProcessorPil(size=SIDE, image_grid_pinpoints=TILES),
        tokenizer=tok,
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return Small("llava_onevision", config, processor)

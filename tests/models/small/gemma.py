"""PaliGemma and Gemma 3."""

import transformers as hf

from qvlm_lightning.models.processors import PREFIX_CHAT, nesting, prefixing
from tests.models.small.parts import CHAT, SIDE, TEXT, Small, ids_of, siglip, special_ids, tokenizer


def paligemma() -> Small:
    tok = tokenizer("<image>")
    config = hf.PaliGemmaConfig(
        vision_config=siglip(2, vision_use_head=False, projection_dim=32),
        text_config=hf.GemmaConfig(**TEXT, **special_ids(tok)),
        image_token_index=tok.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )
    image_processor = hf.SiglipImageProcessorPil(size=SIDE)
    image_processor.image_seq_length = 4
    processor = prefixing(hf.PaliGemmaProcessor)(
        image_processor=image_processor,
        tokenizer=tok,
        chat_template=PREFIX_CHAT,
    )
    return Small("paligemma", config, processor)


def gemma3() -> Small:
    tok = tokenizer("<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    config = hf.Gemma3Config(
        vision_config=siglip(2, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(
            **TEXT,
            **special_ids(tok),
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        mm_tokens_per_image=4,
        **ids_of(
            tok,
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
            image_token_index="<image_soft_token>",
        ),
    )
    processor = nesting(hf.Gemma3Processor)(
        image_processor=hf.Gemma3ImageProcessorPil(size=SIDE),
        tokenizer=tok,
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<start_of_image>"),
    )
    return Small("gemma3", config, processor)

"""InternVL, Idefics3 and SmolVLM: images in tiles."""

from typing import Any

import transformers as hf

from qvlm_lightning.models.processors import image_only
from tests.models.small.parts import CHAT, SIDE, TEXT, TOWER, Small, special_ids, tokenizer


def internvl() -> Small:
    tok = tokenizer(
        "<IMG_CONTEXT>",
        context_image_token="<IMG_CONTEXT>",
        start_image_token="<img>",
        end_image_token="</img>",
        video_token="<video>",
    )
    vision = hf.InternVLVisionConfig(
        **TOWER, num_hidden_layers=2, image_size=[16, 16], patch_size=[4, 4]
    )
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**TEXT, **special_ids(tok)),
        image_token_id=tok.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    processor = image_only(hf.InternVLProcessor)(
        image_processor=hf.GotOcr2ImageProcessorPil(size=SIDE, crop_to_patches=True, max_patches=3),
        tokenizer=tok,
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<IMG_CONTEXT>"),
    )
    return Small("internvl", config, processor)


def idefics(kind: str, config: Any, vision: Any, processor: Any, image_processor: Any) -> Small:
    tok = tokenizer(
        "<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    made = config(
        vision_config=vision(**TOWER, num_hidden_layers=2, image_size=16, patch_size=4).to_dict(),
        text_config=hf.LlamaConfig(**TEXT, **special_ids(tok)),
        image_token_id=tok.image_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=tok.pad_token_id,
    )
    made_processor = processor(
        image_processor=image_processor(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
        ),
        tokenizer=tok,
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return Small(kind, made, made_processor)


def idefics3() -> Small:
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

    return idefics(
        "idefics3",
        hf.Idefics3Config,
        Idefics3VisionConfig,
        hf.Idefics3Processor,
        hf.Idefics3ImageProcessorPil,
    )


def smolvlm() -> Small:
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    return idefics(
        "smolvlm",
        hf.SmolVLMConfig,
        SmolVLMVisionConfig,
        hf.Idefics3Processor,  # SmolVLM's own makes the same of images, and wants num2words
        hf.SmolVLMImageProcessorPil,
    )

"""A random model of two decoder layers and a working processor of every family, without a file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from qvlm_lightning.models.find import family_for
from qvlm_lightning.models.moe_llava_model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from qvlm_lightning.models.processors import PREFIX_CHAT, image_only, nesting, prefixing

WORDS = "what color is the square ? a red circle and a blue one ."
HEAD = 16
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": HEAD,
}
TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2}

CHAT = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass
class Small:
    """Parts of a small model."""

    model_type: str
    config: Any
    processor: Any

    @property
    def family(self) -> Any:
        """The family's class."""
        return family_for(self.model_type)

    def plain(self) -> nn.Module:
        """Return the model as its class makes it; MoE-LLaVA's is not of transformers."""
        mixed = self.model_type == "moe_llava"
        kind: Any = MoeLlavaForConditionalGeneration if mixed else hf.AutoModelForImageTextToText
        make = kind._from_config if mixed else kind.from_config
        return make(self.config, dtype=torch.float32)

    def model(self) -> nn.Module:
        """Return the model with weights that matter, the same at every call."""
        torch.manual_seed(0)
        made = self.plain()
        for parameter in made.parameters():
            if parameter.dim() >= 2:  # the default .02 makes every layer next to nothing
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        for name, parameter in made.named_parameters():
            if "lambda_" in name:  # InternVL starts its layers at a tenth
                nn.init.ones_(parameter)
        return made.eval().requires_grad_(False)


def tokenizer(image: str, **special: str) -> Any:
    """Return a byte-level tokenizer with the family's special tokens as its attributes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokens = ["<pad>", "<s>", "</s>", image, *special.values()]
    made.train_from_iterator(
        [WORDS] * 4,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=list(dict.fromkeys(tokens)),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": image, **special},
    )


def special_ids(tok: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tok),
        "pad_token_id": tok.pad_token_id,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
    }


def ids_of(tok: Any, **names: str) -> dict[str, int]:
    return {name: tok.convert_tokens_to_ids(token) for name, token in names.items()}


def clip() -> Any:
    return hf.CLIPVisionConfig(
        **TOWER, num_hidden_layers=3, image_size=16, patch_size=8, projection_dim=24
    )


def siglip(layers: int = 2, **options: Any) -> Any:
    return hf.SiglipVisionConfig(
        **TOWER, num_hidden_layers=layers, image_size=16, patch_size=8, **options
    )


SIDE = {"height": 16, "width": 16}
TILES = [[16, 32], [32, 16], [32, 32]]


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


BUILDERS: dict[str, Callable[[], Small]] = {
    build.__name__: build
    for build in (
        llava,
        moe_llava,
        llava_siglip,
        llava_next,
        llava_onevision,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        internvl,
        idefics3,
        smolvlm,
        paligemma,
        gemma3,
    )
}


@pytest.fixture(params=BUILDERS)
def small(request: pytest.FixtureRequest) -> Small:
    """Parts of a small model of every family, one after another."""
    return BUILDERS[request.param]()


@pytest.fixture
def make_small() -> Callable[[str], Small]:
    """Make the parts of a small model of one family."""
    return lambda kind: BUILDERS[kind]()


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """Name of the builder that made ``small``."""
    return request.node.callspec.params["small"]

"""Configuration, tokenizer and processor of the embedded model, all plain transformers classes."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from qvlm_lightning.models.tiny.questions import COLUMNS, EXTREMES, ROWS
from qvlm_lightning.models.tiny.scenes import COLORS, GRID, IMAGE_SIZE, SHAPES, SIZES
from qvlm_lightning.models.tiny.texts import ITEMS, NAMES
from qvlm_lightning.models.tiny.turns import LETTERS

PATCH_SIZE = 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
FEATURE_LAYER = -2
TEXT_WIDTH = 192
VISION_WIDTH = 128
PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT = (
    *("<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:"),
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: "
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def vocabulary() -> list[str]:
    """List every word of the model, special tokens first.

    Returns:
        Words in the order of their ids.
    """
    cells = [f"r{row}c{column}" for row in range(GRID) for column in range(GRID)]
    plain = [
        *("what", "color", "shape", "size", "is", "the", "object", "objects", "there", "a", "an"),
        *("how", "many", "are", "which", "row", "column", "in", "of", "above", "below", "left"),
        *("right", "where", "nothing", "yes", "no", "shown", "has", "who", "number", "largest"),
        *("smallest", "?", "."),
    ]
    plurals = ["circles", "squares", "triangles", "crosses"]
    listed = [
        *(PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT),
        *plain,
        *(str(digit) for digit in range(10)),
        *LETTERS,
        *(f"({letter})" for letter in LETTERS),
        *(*COLORS, *SHAPES, *plurals, *SIZES, *ROWS, *COLUMNS, *EXTREMES, *cells, *NAMES, *ITEMS),
    ]
    return list(dict.fromkeys(listed))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the word-level tokenizer: words, punctuation marks and single digits.

    Returns:
        A tokenizer that puts ``<s>`` in front and pads on the left.
    """
    ids = {word: number for number, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex("[?.]"), "isolated"),
            pre_tokenizers.Split(Regex(r"(?<![a-z])\d"), "isolated"),
        ]
    )
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=512,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE, USER, ASSISTANT]})
    return tokenizer


def build_processor() -> LlavaProcessor:
    """Make the LLaVA processor around the tokenizer and CLIP's PIL image processor.

    Returns:
        A processor with a USER/ASSISTANT chat template that also takes messages without image.
    """
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=side),
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def build_config() -> LlavaConfig:
    """Give the shape: 6 tower layers (5 reach the output), projector, 6 decoder layers.

    Returns:
        The configuration of the embedded model.
    """
    ids = {word: number for number, word in enumerate(vocabulary())}
    special = {"pad_token_id": ids[PAD], "bos_token_id": ids[BOS], "eos_token_id": ids[EOS]}
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=VISION_WIDTH,
            intermediate_size=4 * VISION_WIDTH,
            num_hidden_layers=6,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=VISION_WIDTH,
        ),
        text_config=LlamaConfig(
            vocab_size=len(ids),
            hidden_size=TEXT_WIDTH,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            **special,
        ),
        image_token_index=ids[IMAGE],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        **special,
    )


@torch.no_grad()
def build_model(seed: int = 0) -> LlavaForConditionalGeneration:
    """Make the untrained model with weights scaled to their inputs.

    Args:
        seed: seed of the initial weights.

    Returns:
        The model in float32.
    """
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            writes = name.endswith(("o_proj", "down_proj", "out_proj", "fc2"))
            scale = 12**-0.5 if writes else 1.0
            module.weight.normal_(0, scale / math.sqrt(module.in_features))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.35)
        elif isinstance(module, nn.Conv2d):
            module.weight.normal_(0, 1 / math.sqrt(module.weight[0].numel()))
    model.lm_head.weight.mul_(0.1)
    model.generation_config.update(max_new_tokens=4, do_sample=False)
    return model


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write an ordinary Hugging Face folder with weights in float16.

    Args:
        model: the model; it keeps its own precision.
        folder: where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: value.half() for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=half)
    build_processor().save_pretrained(folder)

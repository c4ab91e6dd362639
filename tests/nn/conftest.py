"""Random LLaVAs of any shape and inputs for them, made without a file."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
)

from qvlm_lightning.models.llava import Llava
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

IMAGE, PAD = 3, 0


class NoFolder(Llava):
    """LLaVA without a folder: only names are asked of it."""

    def __init__(self) -> None:
        super().__init__("in memory")

    def _image_token_id(self) -> int:
        return IMAGE


def make_config(
    vision_layers: int = 3,
    language_layers: int = 2,
    chosen: int = -2,
    text: PretrainedConfig | None = None,
    tied: bool = False,
) -> LlavaConfig:
    """Tower of width 16 with 4 patches, decoder of width 24."""
    text = text or LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=language_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=PAD,
        tie_word_embeddings=tied,
    )
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=vision_layers,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=16,
        ),
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=chosen,
        tie_word_embeddings=tied,
    )


def make_model(config: LlavaConfig) -> nn.Module:
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:  # the default .02 makes every layer next to nothing
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False)


def set_ranges(structure: Structure) -> None:
    """Put every quantizer on a range that nothing was measured for."""
    for site in structure.sites:
        quantizer = site.quantizer
        low = -1.0 if quantizer.mode == "dynamic_token" else -2.0
        quantizer.set_range(torch.tensor(low), torch.tensor(-low), 1.0)


def count(config: LlavaConfig) -> tuple[dict[str, str], set[str]]:
    """Return Linear layer -> part, and all other holders of matrices, of the plain model.

    Counted on a model without memory, from names and from the meaning of ``vision_feature_layer``
    alone: hidden state 0 is the embedding, hidden state k the output of layer k - 1.
    """
    with torch.device("meta"):
        plain = LlavaForConditionalGeneration(config)
    layers = config.vision_config.num_hidden_layers
    states = [f"state {k}" for k in range(layers + 1)]
    reached = states.index(states[config.vision_feature_layer])
    parts, left = {}, set()
    for name, module in plain.named_modules():
        place = re.search(r"vision_tower\..*layers\.(\d+)\.", name)
        if not isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            continue
        if not isinstance(module, nn.Linear):
            left.add(name)
        elif place:
            if int(place[1]) < reached:
                parts[name] = "vision"
            else:
                left.add(name)
        elif "multi_modal_projector." in name:
            parts[name] = "projector"
        elif re.search(r"language_model\.layers\.\d+\.", name):
            parts[name] = "language"
        else:
            left.add(name)
    return parts, left


@pytest.fixture
def counted() -> Callable[[LlavaConfig], tuple[dict[str, str], set[str]]]:
    return count


@pytest.fixture
def config() -> Callable[..., LlavaConfig]:
    return make_config


@pytest.fixture
def build() -> Callable[[LlavaConfig], nn.Module]:
    return make_model


@pytest.fixture
def family() -> Llava:
    return NoFolder()


@pytest.fixture
def quantized() -> Callable[..., tuple[nn.Module, Structure]]:
    """A quantized model with some range everywhere, quantizers on."""

    def make(scheme: str | Scheme = "w4a4", **options: Any) -> tuple[nn.Module, Structure]:
        scheme = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
        model = make_model(make_config(**options))
        structure = quantize_model(model, NoFolder(), scheme)
        set_ranges(structure)
        structure.enable(True)
        return model, structure

    return make


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Three samples, the second without an image, padded."""
    rows = [[1, *[IMAGE] * 4, 7, 8, 9], [1, 5, 6, 7], [1, *[IMAGE] * 4, 9]]
    width = max(map(len, rows))
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.tensor([r + [PAD] * (width - len(r)) for r in rows]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
        "pixel_values": torch.randn(2, 3, 16, 16, generator=generator),
    }

"""A random LLaVA for the processor of the embedded model, and samples of its task."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from qvlm_lightning.data import Sample, TinyVQA
from qvlm_lightning.data.collate import collate
from qvlm_lightning.models import Llava
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.models.tiny import WEIGHTS


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    data = TinyVQA(Llava(str(WEIGHTS)), calibration_pairs=4, search_pairs=2, seed=3)
    return data.calibration_samples()


@pytest.fixture(scope="module")
def question(samples, processor) -> dict[str, Tensor]:
    return model_inputs(collate(samples, processor, with_answer=True))


@pytest.fixture(scope="module")
def original(processor) -> nn.Module:
    """A random LLaVA of 2 + 2 layers for the processor of the embedded model."""
    torch.manual_seed(0)
    tokenizer = processor.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=48,
            patch_size=8,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(processor.image_token),
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.fixture
def model(original) -> nn.Module:
    return copy.deepcopy(original)


@pytest.fixture
def small() -> dict[str, Any]:
    """Options of a run that takes no time."""
    return {"epochs": 1, "search_pairs": 2, "batch_size": 2, "seed": 3}

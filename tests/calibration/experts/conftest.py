"""Models with experts of every kind, and batches that reach some experts more than others."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    OlmoeConfig,
    PhiConfig,
    Qwen2MoeConfig,
    StableLmConfig,
)

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.models.experts import unfuse_experts
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.moe_llava import MoeLlava
from qvlm_lightning.models.moe_llava_model import MoeLlavaConfig, MoeLlavaForConditionalGeneration
from qvlm_lightning.quant.scheme import Scheme

IMAGE, PAD = 3, 0
TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 16,
}
MOE: dict[str, Any] = {"moe_layers": [0], "num_experts": [4]}


def qwen2_moe() -> Qwen2MoeConfig:
    sizes = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 20}
    return Qwen2MoeConfig(**TEXT, **sizes, num_experts=4, num_experts_per_tok=2)


KINDS: dict[str, Any] = {
    "qwen2_moe": lambda: (LlavaConfig, qwen2_moe(), {}),
    "mixtral": lambda: (
        LlavaConfig,
        MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2),
        {},
    ),
    "olmoe": lambda: (LlavaConfig, OlmoeConfig(**TEXT, num_experts=4, num_experts_per_tok=2), {}),
    "moe_llava_stablelm": lambda: (MoeLlavaConfig, StableLmConfig(**TEXT, use_qkv_bias=True), MOE),
    "moe_llava_phi": lambda: (MoeLlavaConfig, PhiConfig(**TEXT), MOE),
}


def in_memory(kind: type[Llava]) -> type[Llava]:
    class InMemory(kind):  # type: ignore[misc,valid-type]
        """Without a folder: only names are asked of it."""

        def __init__(self) -> None:
            super().__init__("in memory")

        def _image_token_id(self) -> int:
            return IMAGE

    return InMemory


def make_config(name: str) -> Any:
    config_class, text, more = KINDS[name]()
    return config_class(
        vision_config=CLIPVisionConfig(**TOWER), text_config=text, image_token_index=IMAGE, **more
    )


def make_model(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Llava]:
    torch.manual_seed(0)
    config = make_config(name)
    mixed = isinstance(config, MoeLlavaConfig)
    kind: Any = MoeLlavaForConditionalGeneration if mixed else LlavaForConditionalGeneration
    model = kind(config).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() >= 2:  # the default .02 makes every layer next to nothing
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    unfuse_experts(model)
    return model.eval().requires_grad_(False), in_memory(MoeLlava if mixed else Llava)()


def make_batches(count: int = 2, words: int = 20) -> list[dict[str, Tensor]]:
    made = []
    for first in range(0, 4 * count, 4):
        generator = torch.Generator().manual_seed(first)
        rows = []
        for row in range(4):
            length = words - row % 3
            text = torch.randint(4, 40, (length,), generator=generator).tolist()
            rows.append([1, *([IMAGE] * 4 if row != 1 else []), *text, 2])
        width = max(map(len, rows))
        ids = torch.tensor([r + [PAD] * (width - len(r)) for r in rows])
        mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
        made.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "labels": ids.masked_fill(mask == 0, -100),
                "pixel_values": torch.randn(3, 3, 16, 16, generator=generator),
                "has_image": torch.tensor([row != 1 for row in range(4)]),
                "sample_index": torch.arange(first, first + 4),
            }
        )
    return made


def start(name: str, scheme: Scheme | None = None, **options: Any) -> Calibrator:
    model, family = make_model(name)
    data = make_batches(**options)
    made = Calibrator(model, family, scheme or Scheme.parse("w4a4"), data, data[:1])
    made.collect()
    return made


@pytest.fixture(params=KINDS)
def name(request: pytest.FixtureRequest) -> str:
    """Every kind of model."""
    return request.param


@pytest.fixture
def config_of() -> Any:
    return make_config


@pytest.fixture
def make() -> Any:
    return make_model


@pytest.fixture
def batches() -> Any:
    return make_batches


@pytest.fixture
def calibrator() -> Any:
    """A calibrator of a kind of model, with statistics."""
    return start

"""A random model of two decoder layers and a working processor of every family, without a file."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageDraw
from torch import Tensor

from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from tests.models.small.gemma import gemma3, paligemma
from tests.models.small.llava import (
    llava,
    llava_dinov2,
    llava_next,
    llava_onevision,
    llava_siglip,
    moe_llava,
)
from tests.models.small.parts import Small
from tests.models.small.qwen import qwen2_5_vl, qwen2_vl, qwen3_vl
from tests.models.small.tiles import idefics3, internvl, smolvlm

BUILDERS: dict[str, Callable[[], Small]] = {
    build.__name__: build
    for build in (
        llava,
        moe_llava,
        llava_siglip,
        llava_dinov2,
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


def picture(width: int, height: int, colour: str) -> Image.Image:
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    ImageDraw.Draw(image).ellipse([3, 3, width - 5, height - 7], fill=colour)
    return image


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Images of different shapes, one sample without."""
    wide, tall, large = picture(30, 14, "red"), picture(15, 31, "blue"), picture(40, 36, "red")
    return [
        Sample("a", wide, "what color is the square ?", answer="red"),
        Sample("b", None, "what is blue ?", answer="one circle"),
        Sample("c", tall, "what is the circle ?", answer="a blue one"),
        Sample("d", large, "what color ?", answer="red"),
    ]


@pytest.fixture
def family(small: Any) -> Any:
    """The family around the small model's processor."""
    family = small.family("in memory")
    family._processor = small.processor
    return family


@pytest.fixture
def batches(small: Any, samples: list[Sample]) -> list[dict[str, Tensor]]:
    return [
        collate(samples[:3], small.processor, with_answer=True),
        collate(samples[3:], small.processor, with_answer=True, first_index=3),
    ]

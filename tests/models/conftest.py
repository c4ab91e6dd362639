"""A random model of two decoder layers and a working processor of every family, without a file."""

from collections.abc import Callable

import pytest

from tests.models.small.gemma import gemma3, paligemma
from tests.models.small.llava import llava, llava_next, llava_onevision, llava_siglip, moe_llava
from tests.models.small.parts import Small
from tests.models.small.qwen import qwen2_5_vl, qwen2_vl, qwen3_vl
from tests.models.small.tiles import idefics3, internvl, smolvlm

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

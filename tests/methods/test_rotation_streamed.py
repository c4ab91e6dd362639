"""Rotations of a model without weights: the bits of the one in memory, and a file that is made once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qvlm_lightning.artifact import save_artifact
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import (
    GPTQ,
    Chain,
    LearnedTransforms,
    LeastSquares,
    Rotation,
    SequentialSearch,
)
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights import prepared
from tests.calibration.conftest import InFolder, build_toy

TOWERS = ["vision", "projector", "language"]
METHODS = {
    "quarot": lambda: Chain([Rotation(), SequentialSearch()]),
    "plus_fast": lambda: Chain([Rotation(), GPTQ(ranges=LeastSquares())]),
    "everywhere": lambda: Chain([Rotation(online="all"), LearnedTransforms(steps=2), GPTQ()]),
    "heads": lambda: Rotation(residual=False, online="none"),
    "transforms": lambda: LearnedTransforms(steps=2, full_width=1),
}


class NoProcessor:
    def save_pretrained(self, folder: Path) -> None:
        """Nothing to save."""


@pytest.fixture
def small(tmp_path):
    """Grouped queries, tied embeddings, gains and biases that are not 1 and 0; stored in bfloat16."""
    model = build_toy(kv_heads=1)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.bfloat16().save_pretrained(tmp_path / "small", max_shard_size="20KB")
    return tmp_path / "small"


def artifact(opened, folder, method, streamed, to, mode="static_tensor"):
    scheme = Scheme.parse("w4a8", activation_mode=mode, sink="prefix")
    calibrator = opened(folder, streamed, scheme)
    calibrator.prepare(method)
    calibrator.collect(method.candidates(mode) if streamed else None)
    calibrator.search(TOWERS, method, "a")
    calibrator.structure.enable(True)
    weights, stored = calibrator.passes.weights if streamed else None, calibrator.structure.stored
    save_artifact(to, calibrator.model, NoProcessor(), {}, weights, stored)
    return calibrator


@pytest.mark.parametrize("method", METHODS)
def test_the_artifact_is_that_of_the_model_in_memory(method, opened, small, tmp_path):
    made = METHODS[method]
    one = artifact(opened, small, made(), False, tmp_path / "memory")
    other = artifact(opened, small, made(), True, tmp_path / "streamed")
    assert one.structure.notes == other.structure.notes
    files = sorted(p.name for p in (tmp_path / "memory").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "streamed").iterdir())
    for name in files:
        pair = [(tmp_path / way / name).read_bytes() for way in ("memory", "streamed")]
        assert pair[0] == pair[1], name

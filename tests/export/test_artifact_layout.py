"""Artifacts in the layout of compressed-tensors: read here, packed and simulated, and by others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from qvlm_lightning.artifact import Artifact, load, load_artifact
from qvlm_lightning.errors import InputError
from qvlm_lightning.export import export_gguf, save_compressed
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.exported import sha256_of
from tests.export.base_file import write_base
from tests.export.making import tiny_artifact, tiny_inputs

TARGET = {"target": "compressed-tensors"}
PER_TOKEN = {"activation_mode": "dynamic_token"}
SCHEMES = {
    "w8a8": Scheme.parse("w8a8", **PER_TOKEN, weight_symmetric=True, **TARGET),
    "w4a16 asymmetric": Scheme.parse("w4a16", group_size=32, **TARGET),
    "w3a8 bytes": Scheme.parse("w3a8", **PER_TOKEN, **TARGET),
    "w8a8 static": Scheme.parse("w8a8", weight_symmetric=True, **TARGET),
}
LAYER = "language_model.model.layers.2.mlp.down_proj"


def made(root: Path, scheme: Scheme, dtype: str = "float32") -> tuple[Artifact, Path]:
    """Return an artifact in our own layout, and the folder of the same one in the other."""
    own = tiny_artifact(root / "own", scheme, dtype)
    save_compressed(root / "artifact", own)
    return own, root / "artifact"


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(**tiny_inputs()).logits
    return found


@pytest.mark.parametrize("name", SCHEMES)
def test_both_layouts_are_one_model(tmp_path, name: str) -> None:
    own, folder = made(tmp_path, SCHEMES[name])
    again = load_artifact(folder)
    before, after = own.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert [n for n in before if not torch.equal(before[n], after[n])] == []
    assert torch.equal(logits(own.model), logits(again.model))
    packed = [load(path)[0] for path in (tmp_path / "own", folder)]
    assert torch.equal(*map(logits, packed))
    assert again.manifest["format"] == 5
    model, complaints = AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(complaints.values())
    if name != "w8a8 static":  # ties: docs/export.md
        assert torch.equal(logits(model.eval()), logits(own.model))

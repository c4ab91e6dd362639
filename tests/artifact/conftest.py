"""The embedded model with ranges, and as an artifact."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoProcessor

from qvlm_lightning.artifact import save_artifact
from qvlm_lightning.calibration import Calibrator
from qvlm_lightning.data import Sample
from qvlm_lightning.data.collate import collate
from qvlm_lightning.models.family import model_inputs
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS, generate
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.exported import MANIFEST, sha256_of


def batch_of(split: str, count: int) -> dict[str, Tensor]:
    """Return questions of the embedded task; of four, the fourth family on has no image."""
    made = generate(split, 40)[::3][:count]
    samples = [Sample(s.id, s.image, s.question, s.choices, s.answer, s.family) for s in made]
    return collate(samples, AutoProcessor.from_pretrained(WEIGHTS), with_answer=True)


@pytest.fixture(scope="module")
def questions() -> dict[str, Tensor]:
    return model_inputs(batch_of("test", 6))


def calibrate_tiny(
    scheme: Scheme, family: Llava | None = None, change: Callable[[nn.Module], None] | None = None
) -> tuple[nn.Module, Structure]:
    """Return the embedded model with ranges, quantizers on."""
    family = family or Llava(str(WEIGHTS))
    model = family.load_model()
    if change:
        change(model)
    batch = batch_of("calibration", 4)
    calibrator = Calibrator(model, family, scheme, [batch], [batch])
    calibrator.collect()
    for site in calibrator.structure.sites:
        low, high = calibrator.statistics.ranges(site, [0.985])
        site.quantizer.set_range(low[0], high[0], 0.985)
    calibrator.structure.enable(True)
    return model, calibrator.structure


def export_tiny(folder: Path, model: nn.Module, scheme: Scheme) -> Path:
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    save_artifact(folder, model, processor, {"method": "sequential", "scheme": scheme.to_dict()})
    return folder


@pytest.fixture
def calibrate() -> Any:
    return calibrate_tiny


def store(tensors: dict[str, Tensor], file: Path) -> None:
    """Put other tensors into an artifact, and their hash into its manifest."""
    save_file(tensors, file)
    manifest = json.loads((file.parent / MANIFEST).read_text())
    manifest["files"][file.name] = sha256_of(file)
    (file.parent / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def restore() -> Any:
    """Put other tensors into an artifact."""
    return store


@pytest.fixture
def export() -> Any:
    """Write a model as an artifact."""
    return export_tiny


@pytest.fixture
def tie() -> Any:
    """Let a model's head be its embeddings."""

    def change(model: nn.Module) -> None:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
        model.lm_head.weight = model.model.language_model.embed_tokens.weight

    return change


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> tuple[Path, nn.Module]:
    """An artifact on disk and the model it was made from."""
    scheme = Scheme.parse("w4a4")
    model, _ = calibrate_tiny(scheme)
    return export_tiny(tmp_path_factory.mktemp("stored") / "artifact", model, scheme), model


@pytest.fixture
def folder(stored, tmp_path) -> Path:
    """A copy to break."""
    return shutil.copytree(stored[0], tmp_path / "artifact")

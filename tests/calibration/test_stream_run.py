"""The calibration program with streaming on: the same artifact, the same checkpoints."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.cli import train_main
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.models import Tiny
from qvlm_lightning.quant.scheme import Scheme

CONFIGS = Path(__file__).parents[2] / "configs"


def fit(root: Path, method: str, streaming: str, *options: str) -> None:
    files = [f"methods/{method}.yaml", "schemes/w4a4.yaml", "models/tiny.yaml", "data/tiny.yaml"]
    words = [word for file in ("base.yaml", *files) for word in ("--config", str(CONFIGS / file))]
    train_main(
        [
            "fit",
            *words,
            f"--trainer.default_root_dir={root}",
            f"--model.streaming={streaming}",
            "--trainer.accelerator=cpu",
            "--data.calibration_pairs=4",
            "--data.search_pairs=2",
            "--data.batch_size=2",
            *options,
        ]
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    found = {streaming: folder / streaming for streaming in ("false", "true")}
    for streaming, root in found.items():
        fit(root, "sequential", streaming)
    return found


def test_the_artifact_is_that_of_the_model_in_memory(runs):
    files = [p for p in (runs["false"] / "artifact").iterdir() if p.is_file()]
    assert len(files) > 6
    others = runs["true"] / "artifact"
    assert sorted(p.name for p in others.iterdir()) == sorted(p.name for p in files)
    for path in files:
        assert (others / path.name).read_bytes() == path.read_bytes(), path.name
    assert load_artifact(runs["true"] / "artifact").structure.enabled()["language"]


def test_a_checkpoint_made_in_memory_reaches_a_streamed_model(runs):
    """Lightning, which would load it, does not see the model."""
    checkpoint = torch.load(runs["false"] / "checkpoints" / "last.ckpt", weights_only=True)
    family = Tiny()
    data = TinyVQA(family, calibration_pairs=4, search_pairs=2, batch_size=2)
    data.setup("fit")
    module = QuantModule(family, Scheme.parse("w4a4"), streaming=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.build(data, trainer)
    module.schedule = checkpoint["calibration"]["identity"]["schedule"]
    fresh = {name: x.clone() for name, x in module.quantizer_state().items()}
    module.on_load_checkpoint(checkpoint)
    loaded = module.quantizer_state()
    assert {f"model.{name}" for name in loaded} == set(checkpoint["state_dict"])
    assert all(torch.equal(x, checkpoint["state_dict"][f"model.{n}"]) for n, x in loaded.items())
    assert not any(torch.equal(fresh[n], x) for n, x in loaded.items() if n.endswith(".high"))
    assert module.state.searched == ["vision", "projector", "language"]
    assert list(module.children()) == []


def test_what_is_held_where_is_said_before_it_starts(tmp_path, capsys):
    fit(tmp_path / "run", "rtn", "true")
    said = capsys.readouterr().out
    first, *rest = [line for line in said.splitlines() if line.strip()]
    assert "Seed set" in first or first.startswith("streaming ")
    assert any(line.startswith("on cpu: a block of up to 1 layers") for line in rest)
    assert any("decoder layers: " in line and "for the search" in line for line in rest)


def test_optimisation_is_refused_before_anything_is_written(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        fit(tmp_path / "run", "veo", "true")
    assert stopped.value.code == 2
    assert "gradients through the whole model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

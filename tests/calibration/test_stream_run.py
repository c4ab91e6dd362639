"""The calibration program with streaming on: the same artifact, the same checkpoints."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.calibration import stream_run
from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.schedule import PassSettings
from qvlm_lightning.calibration.stream_run import open_model, ram_for_weights
from qvlm_lightning.cli import train_main
from qvlm_lightning.data import TinyVQA
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import SequentialSearch
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


def test_hidden_states_on_disk_leave_nothing_in_the_run_folder(runs, tmp_path):
    fit(tmp_path / "disk", "sequential", "disk")
    left, others = (
        {p.relative_to(root) for p in root.rglob("*") if ".tfevents." not in p.name}
        for root in (tmp_path / "disk", runs["true"])
    )
    assert left == others
    one, other = (
        root / "artifact" / "quantizers.safetensors" for root in (tmp_path / "disk", runs["true"])
    )
    assert one.read_bytes() == other.read_bytes()


def test_a_checkpoint_made_in_memory_reaches_a_streamed_model(runs):
    """Lightning, which would load it, does not see the model."""
    checkpoint = torch.load(runs["false"] / "checkpoints" / "last.ckpt", weights_only=True)
    family = Tiny()
    data = TinyVQA(family, calibration_pairs=4, search_pairs=2, batch_size=2)
    data.setup("fit")
    module = QuantModule(family, Scheme.parse("w4a4"), SequentialSearch(), streaming=True)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.register_pass("PercentileSearch", PassSettings({}))
    module.build(data, trainer)
    fresh = {name: x.clone() for name, x in module.quantizer_state().items()}
    module.on_load_checkpoint(checkpoint)
    loaded = module.quantizer_state()
    assert {f"model.{name}" for name in loaded} == set(checkpoint["state_dict"])
    assert all(torch.equal(x, checkpoint["state_dict"][f"model.{n}"]) for n, x in loaded.items())
    assert not any(torch.equal(fresh[n], x) for n, x in loaded.items() if n.endswith(".high"))
    assert module.state.searched == ["vision", "projector", "language"]
    assert list(module.children()) == []


def test_a_model_is_built_on_the_cpu_whatever_the_default_device(tmp_path):
    """Lightning builds with its accelerator as the default device: files cannot be read to it."""
    family = Tiny()
    data = TinyVQA(family, calibration_pairs=4, search_pairs=2, batch_size=2)
    data.setup("fit")
    module = QuantModule(family, Scheme.parse("w4a4"), SequentialSearch(), streaming=True)
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False
    )
    module.trainer = trainer
    trainer._data_connector.attach_datamodule(module, datamodule=data)
    with torch.device("meta"):
        module.configure_model()
    assert {x.device.type for x in module.quantizer_state().values()} == {"cpu"}


def test_weights_stay_in_ram_only_beside_a_device_and_only_if_all_do(monkeypatch):
    cpu, meta = torch.device("cpu"), torch.device("meta")
    kept = [open_model(Tiny(), d, ram)[1]._kept for d, ram in ((cpu, 10**9), (meta, 10**9))]
    assert kept == [None, {}]
    assert open_model(Tiny(), meta, ram=1000)[1]._kept is None
    monkeypatch.setattr(stream_run, "ram_bytes", lambda: 1000)
    assert [ram_for_weights(s, 2) for s in (True, "disk")] == [250, 0]
    monkeypatch.setattr(stream_run, "ram_bytes", lambda: None)
    assert ram_for_weights(True, 1) == 0


def test_other_answers_to_the_same_questions_are_another_calibration_set(runs):
    checkpoint = torch.load(runs["false"] / "checkpoints" / "last.ckpt", weights_only=True)
    family = Tiny()
    data = TinyVQA(family, calibration_pairs=4, search_pairs=2, batch_size=2)
    data.setup("fit")
    data.calibration[2] = replace(data.calibration[2], answer="seven")
    module = QuantModule(family, Scheme.parse("w4a4"), SequentialSearch())
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.register_pass("PercentileSearch", PassSettings({}))
    module.build(data, trainer)
    with pytest.raises(InputError, match="the checkpoint has calibration_tokens '"):
        module.check(checkpoint)


def test_what_is_held_where_is_said_before_it_starts(tmp_path, capsys):
    fit(tmp_path / "run", "rtn", "true")
    said = capsys.readouterr().out
    first, *rest = [line for line in said.splitlines() if line.strip()]
    assert "Seed set" in first or first.startswith("streaming ")
    assert any(line.startswith("on cpu: a block of up to 1 layers") for line in rest)
    assert any("decoder layers: " in line and "for the search" in line for line in rest)


@pytest.mark.slow
def test_an_optimisation_learns_what_it_learns_in_memory(tmp_path, capsys):
    few = ("--model.epochs=1", "--model.entropy_samples=512")
    for streaming in ("false", "true"):
        fit(tmp_path / streaming, "veo", streaming, *few)
    found = [(tmp_path / s / "artifact" / "quantizers.safetensors") for s in ("false", "true")]
    assert found[0].read_bytes() == found[1].read_bytes()
    ratios = [x for n, x in load_file(found[1]).items() if n.endswith("_ratio")]
    assert any(not x.eq(1).all() for x in ratios)
    said = capsys.readouterr().out
    assert "optimisation: 2 steps, each of 2 reads" in said
    assert " for the optimisation\n" in said


@pytest.mark.slow
@pytest.mark.parametrize("train", ["norms", "lora"])
def test_what_adapters_learned_is_in_the_exported_weights(tmp_path, train):
    few = ("--model.epochs=1", "--model.entropy_samples=512", f"--model.train={train}")
    for streaming in ("false", "true"):
        fit(tmp_path / streaming, "veo", streaming, *few)
    files = [sorted((tmp_path / s / "artifact").glob("*.safetensors")) for s in ("false", "true")]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.slow
def test_a_resumed_optimisation_goes_on_where_it_was(tmp_path):
    """Lightning restores the optimiser, the run itself what it learns."""
    few = ("--model.epochs=2", "--model.entropy_samples=512")
    fit(tmp_path / "whole", "veo", "true", *few)
    fit(tmp_path / "parts", "veo", "true", *few, "--trainer.max_epochs=1")
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    fit(tmp_path / "parts", "veo", "true", *few, f"--ckpt_path={last}")
    one, other = (
        tmp_path / root / "artifact" / "quantizers.safetensors" for root in ("whole", "parts")
    )
    assert one.read_bytes() == other.read_bytes()

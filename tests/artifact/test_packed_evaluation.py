"""The evaluation program computes with packed weights, unless it is told to simulate."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qvlm_lightning.artifact import load_artifact, save_artifact
from qvlm_lightning.evaluation import cli
from qvlm_lightning.models.tiny_family import Tiny
from qvlm_lightning.quant.scheme import Scheme

CONFIG = Path(__file__).parents[2] / "configs" / "eval" / "tiny.yaml"


def told(folder: Path, artifact: Path, *more: str) -> list[str]:
    """Return a command line that asks eight questions."""
    return [
        f"--config={CONFIG}",
        f"--model.artifact={artifact}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={folder}",
        "--data.init_args.evaluation_count=8",
        "--reference=false",
        *more,
    ]


def asked(folder: Path) -> dict:
    """Return what the stored answers say that they depend on."""
    (about,) = (folder / "predictions").glob("*.json")
    return json.loads(about.read_text())["asked"]


@pytest.fixture
def artifact(tmp_path, calibrate) -> Path:
    """An artifact with all that an evaluation asks of a manifest."""
    scheme, family = Scheme.parse("w8a8", activation_mode="dynamic_token"), Tiny()
    model, _ = calibrate(scheme, family)
    manifest = family.describe() | {
        "model": family.fingerprint(family.load_model()),
        "method": "sequential",
        "scheme": scheme.to_dict(),
        "scheme_name": scheme.name,
        "activation_mode": scheme.activation_mode,
        "seed": 0,
        "calibration_ids": [],
    }
    save_artifact(tmp_path / "artifact", model, family.load_processor(), manifest)
    return tmp_path / "artifact"


def test_packed_weights_answer_unless_told_to_simulate(tmp_path, artifact, capsys):
    cli.eval_main(told(tmp_path, artifact))
    printed = " ".join(capsys.readouterr().out.split())
    assert "note: computed with packed weights: " in printed
    results = (tmp_path / "results.md").read_text()
    assert "layers)" in results[results.index("computed with packed weights: ") :]
    assert asked(tmp_path)["packed"] is True
    told_of = json.loads((tmp_path / "kernels.json").read_text())
    assert told_of["artifact"] == str(artifact)
    layers = told_of["layers"]
    assert layers.keys() == load_artifact(artifact, packed=True).packed.layers.keys()
    ran = Counter(kernel for layer in layers.values() for kernel in layer["kernels"])
    assert ran
    for kernel, count in ran.items():
        assert f"{kernel} ({count} layers)" in results
    assert {layer["bits"] for layer in layers.values()} == {8}

    cli.eval_main(told(tmp_path, artifact, "--simulate=true"))
    assert "computed by fake quantization" in " ".join(capsys.readouterr().out.split())
    assert "packed" not in asked(tmp_path)
    assert not (tmp_path / "kernels.json").exists()


def test_rows_that_were_computed_otherwise_are_named():
    """A run folder may hold rows of a GPU, where artifacts are fake-quantized."""
    kernels = SimpleNamespace(used=lambda: {"onednn": 2}, notes=list)
    module = SimpleNamespace(artifact="a", kernels=kernels)
    known = {
        name: SimpleNamespace(variant=SimpleNamespace(name=name, is_fp=fp), asked=asked)
        for name, fp, asked in (
            ("fp", True, {}),
            ("mine", False, {"packed": True}),
            ("older", False, {}),
        )
    }
    notes = cli._computed_by(module, known)
    assert notes == [
        "computed with packed weights: onednn (2 layers)",
        "fake-quantized, unlike this one: older",
    ]
    module.kernels = None
    assert cli._computed_by(module, known)[1] == (
        "computed with packed weights, unlike this one: mine"
    )


def test_a_gpu_gets_the_simulation():
    for device, packed in (("cpu", True), ("cuda", False)):
        strategy = SimpleNamespace(root_device=torch.device(device))
        assert cli._on_cpu(SimpleNamespace(strategy=strategy)) is packed

"""The method is the model's: set from the command line, named in report and artifact."""

import json
from pathlib import Path

import pytest
import yaml

from qvlm_lightning.cli import train_main

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PARTS = ("base", "schemes/w4a4", "models/tiny", "data/tiny")
SMALL = [
    "--trainer.accelerator=cpu",
    "--data.init_args.calibration_pairs=4",
    "--data.init_args.search_pairs=2",
    "--data.init_args.batch_size=2",
    "--data.init_args.evaluation_count=4",
]


def fit(root: Path, *options: str, method: str = "methods/sequential") -> None:
    files = [f"--config={CONFIGS / f'{part}.yaml'}" for part in (PARTS[0], method, *PARTS[1:])]
    train_main(["fit", *files, *SMALL, f"--trainer.default_root_dir={root}", *options])


def written(root: Path) -> tuple[dict, dict]:
    report = json.loads((root / "report.json").read_text())
    return report, json.loads((root / "artifact" / "quantization.json").read_text())


def test_every_setting_reaches_report_and_artifact(tmp_path) -> None:
    options = [
        "--model.method.per=layer",
        "--model.method.objective=plain",
        "--model.method.percentiles=[1.0, 0.99]",
        "--model.name=mine",
        "--model.sensitivity=true",
    ]
    fit(tmp_path / "run", *options)
    report, manifest = written(tmp_path / "run")
    for said in (report, manifest):
        assert said["method"] == "mine"
        assert said["objective"] == "plain"
        assert said["candidates"] == [1.0, 0.99]
        assert said["settings"]["class"] == "SequentialSearch"
        assert said["settings"]["per"] == "layer"
        assert said["search"]["layer_forwards"] > 0
    assert "seconds" in report["search"]
    assert "seconds" not in manifest["search"]
    assert set(report["percentiles"].values()) <= {1.0, 0.99}
    assert set(report["sensitivity"]["parts"]) == {"vision", "projector", "language"}
    assert len(report["sensitivity"]["layers"]) == 10


def test_the_mode_says_which_candidates(tmp_path) -> None:
    fit(tmp_path / "run", "--model.scheme.activation_mode=dynamic_token")
    report, manifest = written(tmp_path / "run")
    assert manifest["candidates"] == [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65]
    assert set(report["percentiles"].values()) <= set(manifest["candidates"])
    assert report["sensitivity"] is None


def test_a_file_of_before_still_runs(tmp_path, capsys) -> None:
    """Method and name in callbacks, and the callbacks that base.yaml now has."""
    callbacks = [
        {
            "class_path": "qvlm_lightning.callbacks.PercentileSearch",
            "init_args": {"method": {"class_path": "qvlm_lightning.methods.MinMax"}},
        },
        {"class_path": "qvlm_lightning.callbacks.QuantizerMonitor"},
        {"class_path": "qvlm_lightning.callbacks.ArtifactExport", "init_args": {"method": "old"}},
        {"class_path": "qvlm_lightning.callbacks.ResumePoint"},
    ]
    old = {
        "model": {"class_path": "qvlm_lightning.calibration.QuantModule"},
        "trainer": {"callbacks+": callbacks},
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    files = [
        CONFIGS / "base.yaml",
        tmp_path / "old.yaml",
        *(CONFIGS / f"{p}.yaml" for p in PARTS[1:]),
    ]
    options = [f"--config={f}" for f in files]
    with pytest.warns(match="now model.method"):
        train_main(["fit", *options, *SMALL, f"--trainer.default_root_dir={tmp_path / 'run'}"])
    report, _ = written(tmp_path / "run")
    assert report["method"] == "old"
    assert report["settings"]["class"] == "MinMax"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model.method.per=token"], "per"),
        (["--model.method.objective=cosine"], "objective"),
        (["--model.method.percentiles=[0.99, 0.98]"], "fall from 1"),
        (["--model.method.percentiles=[1.0, 0.4]"], "stay above 0.5"),
        (["--model.method.clip_ratios=[1.0, 1.0]"], "fall from 1"),
        (["--model.name=../up"], "'../up' is not allowed"),
        (["--model.method=null"], "PercentileSearch needs a method"),
        (["--trainer.callbacks=null"], "no callback uses it"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, capsys, options, sentence) -> None:
    with pytest.raises(SystemExit) as end:
        fit(tmp_path / "run", *options)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "report.json").exists()

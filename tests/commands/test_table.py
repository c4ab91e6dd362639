import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import qvlm_lightning.evaluation.module as evaluation_module
from qvlm_lightning.__main__ import main as program
from qvlm_lightning.commands import table
from qvlm_lightning.errors import InputError
from qvlm_lightning.models import Llava

CONFIGS = Path(__file__).parents[2] / "configs"


class Calibrations:
    """Stands in for the calibration program and for what loads its artifacts."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fail_at = -1

    def train_main(self, args: list[str]) -> None:
        self.calls.append(args)
        options = dict(option.removeprefix("--").split("=", 1) for option in args[1:])
        folder = Path(options["trainer.default_root_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").touch()
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        (folder / "artifact").mkdir()
        about = {
            "method": next(Path(a).stem for a in args if "/methods/" in a),
            "scheme_name": next(Path(a).stem for a in args if "/schemes/" in a),
            "seed": int(options["data.init_args.seed"]),
            "scale": float(options.get("model.init_args.family.init_args.outlier_scale", 1)),
        }
        (folder / "artifact" / "quantization.json").write_text(json.dumps(about))

    def load_artifact(self, path: str) -> SimpleNamespace:
        from qvlm_lightning.models import Tiny

        about = json.loads((Path(path) / "quantization.json").read_text())
        family = Tiny(about["scale"])
        model = family.load_model()
        manifest = {
            **about,
            **family.describe(),
            "model": family.fingerprint(model),
            "activation_mode": "static_tensor",
            "calibration_ids": [],
        }
        noise = torch.Generator().manual_seed(about["seed"])
        model.lm_head.weight += 0.1 * torch.randn(model.lm_head.weight.shape, generator=noise)
        return SimpleNamespace(model=model, processor=family.load_processor(), manifest=manifest)


@pytest.fixture
def calibrations(monkeypatch) -> Calibrations:
    made = Calibrations()
    monkeypatch.setattr(table, "train_main", made.train_main)
    monkeypatch.setattr(evaluation_module, "load_artifact", made.load_artifact)
    return made


@pytest.fixture
def evaluated(monkeypatch) -> list[str]:
    """Names of the variants whose questions were answered, one entry per test loop."""
    seen: list[str] = []
    original = evaluation_module.VQAEvaluation.on_test_start

    def spy(self) -> None:
        seen.append(self.variant.name)
        original(self)

    monkeypatch.setattr(evaluation_module.VQAEvaluation, "on_test_start", spy)
    return seen


def options(root: Path, **changes) -> list[str]:
    plan = {
        "variants": ["rtn w4a4", "qvlm w4a4"],
        "questions": 12,
        "pairs": 4,
        "search_pairs": 2,
        "root": str(root),
        "configs": str(CONFIGS),
    }
    return [
        f"--{key}={json.dumps(v) if isinstance(v, list) else v}"
        for key, v in (plan | changes).items()
    ]


def test_table_of_a_plan(calibrations, evaluated, tmp_path, capsys):
    assert table.main(options(tmp_path, seeds=[0, 1], outlier_scales=[1.0, 4.0])) == 0
    assert len(calibrations.calls) == 8
    # once plain and once with shuffled images in full precision, once per artifact
    assert len(evaluated) == 2 * 2 + 8
    rows = json.loads((tmp_path / "results.json").read_text())
    variants = {(r["method"], r["seed"], r["outlier_scale"]) for r in rows}
    assert len(variants) == 2 + 8
    assert {r["stress"] for r in rows if r["outlier_scale"] == 4.0} == {True}
    minus = [r for r in rows if r["metric"] == "accuracy_minus_rtn" and r["task"] == "overall"]
    assert len(minus) == 4
    printed = capsys.readouterr().out
    assert "W4A4 qvlm" in printed
    assert "mean over 2 calibration seeds" in printed
    assert "stress ×4" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table.png").stat().st_size > 10_000


def test_each_calibration_gets_its_folder_seed_and_files(calibrations, tmp_path):
    table.main(options(tmp_path, seeds=[3], options=["--model.init_args.epochs=2"]))
    first, _ = calibrations.calls
    assert first[0] == "fit"
    assert [Path(a).stem for a in first if a.startswith("--config=")] == [
        *("base", "rtn", "w4a4", "tiny", "tiny")
    ]
    folder = tmp_path / "tiny-k1" / "seed3" / "rtn-w4a4"
    assert f"--trainer.default_root_dir={folder}" in first
    for option in ("seed=3", "calibration_pairs=4", "search_pairs=2"):
        assert f"--data.init_args.{option}" in first
    assert first[-1] == "--model.init_args.epochs=2"


def test_the_headline_lies_in_the_root(calibrations, tmp_path):
    table.main(options(tmp_path, headline="qvlm w4a4", seeds=[0, 1]))
    assert (tmp_path / "artifact").is_dir()
    assert (tmp_path / "tiny-k1" / "seed1" / "qvlm-w4a4" / "artifact").is_dir()
    assert not (tmp_path / "tiny-k1" / "seed0" / "qvlm-w4a4").exists()


def test_finished_work_is_not_done_again(calibrations, evaluated, tmp_path, capsys):
    table.main(options(tmp_path))
    before = (tmp_path / "results.json").read_bytes()
    calls, loops = len(calibrations.calls), len(evaluated)
    table.main(options(tmp_path))
    assert (len(calibrations.calls), len(evaluated)) == (calls, loops)
    assert (tmp_path / "results.json").read_bytes() == before
    assert "already there" in capsys.readouterr().err


def test_an_interrupted_calibration_is_resumed(calibrations, tmp_path):
    calibrations.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        table.main(options(tmp_path))
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {r["method"] for r in rows} == {"fp", "rtn"}
    table.main(options(tmp_path))
    resumed = [call for call in calibrations.calls if "--ckpt_path=last" in call]
    assert resumed == [calibrations.calls[2]]
    assert len(calibrations.calls) == 3


def test_a_growing_plan_keeps_what_is_there(calibrations, evaluated, tmp_path):
    table.main(options(tmp_path))
    evaluated.clear()
    table.main(options(tmp_path, seeds=[0, 1]))
    assert len(calibrations.calls) == 4
    assert evaluated == [f"{m}-w4a4-static_tensor-k1-s1" for m in ("rtn", "qvlm")]


def test_a_new_artifact_is_evaluated_again(calibrations, evaluated, tmp_path):
    table.main(options(tmp_path))
    evaluated.clear()
    artifact = tmp_path / "tiny-k1" / "seed0" / "rtn-w4a4" / "artifact" / "quantization.json"
    artifact.write_text(artifact.read_text() + "\n")
    table.main(options(tmp_path))
    assert evaluated == ["rtn-w4a4-static_tensor-k1-s0"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"variants": ["magic w4a4"]}, r"magic\.yaml'; allowed are cdm, qvlm, rtn"),
        ({"variants": ["rtn"]}, "variant 'rtn' is not a method and a scheme"),
        ({"variants": []}, "the plan compares nothing"),
        ({"headline": "veo w4a4"}, "headline is 'veo w4a4'; allowed are the variants rtn w4a4"),
        ({"model": "huge"}, r"huge\.yaml'; allowed are tiny"),
        ({"configs": "nowhere"}, r"base\.yaml'; allowed are none there"),
    ],
)
def test_faulty_plans_end_before_work(calibrations, tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        table.main(options(tmp_path / "run", **changes))
    assert not calibrations.calls
    assert not (tmp_path / "run").exists()


def test_runs_of_another_plan_are_not_mixed_in(calibrations, tmp_path):
    table.main(options(tmp_path))
    with pytest.raises(InputError, match="holds runs with pairs 4, the plan has 5"):
        table.main(options(tmp_path, pairs=5))


def test_runs_of_other_weights_are_not_mixed_in(calibrations, tmp_path, monkeypatch):
    table.main(options(tmp_path))
    monkeypatch.setattr(Llava, "fingerprint", lambda self, model: "retrained")
    original = calibrations.load_artifact

    def stale(path):
        loaded = original(path)
        loaded.manifest["model"] = "as it was"
        return loaded

    monkeypatch.setattr(evaluation_module, "load_artifact", stale)
    with pytest.raises(InputError, match="was calibrated from other weights than the model has"):
        table.main(options(tmp_path))


def test_an_artifact_of_something_else_is_not_taken_for_the_plans(calibrations, tmp_path):
    table.main(options(tmp_path))
    path = tmp_path / "tiny-k1" / "seed0" / "qvlm-w4a4" / "artifact" / "quantization.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(InputError, match="holds w4a4 qvlm, seed 5, the plan has w4a4 qvlm, seed 0"):
        table.main(options(tmp_path))


def test_unknown_option_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        program(["table", "--sheds=[0]"])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("path", sorted((CONFIGS / "table").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_plan_can_be_carried_out(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    run = table.TableRun(table.parse_plan([f"--config={path}"]))
    assert run.calibrations
    folders = [calibration.folder for calibration in run.calibrations]
    assert len(set(folders)) == len(folders)

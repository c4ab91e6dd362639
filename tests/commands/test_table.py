import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import qvlm_lightning.evaluation.module as evaluation_module
from qvlm_lightning.__main__ import main as program
from qvlm_lightning.commands import _table_row as table_row
from qvlm_lightning.commands import _table_run as table_run
from qvlm_lightning.commands import table
from qvlm_lightning.commands._table_configs import TableConfigs
from qvlm_lightning.commands._table_files import planned_scheme
from qvlm_lightning.commands._table_plan import PlannedVariant, TablePlan
from qvlm_lightning.errors import InputError
from qvlm_lightning.models import Llava
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.run_lock import LOCK

CONFIGS = Path(__file__).parents[2] / "configs"


class Calibrations:
    """Stands in for the calibration program and for what loads its artifacts."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fail_at = -1

    def train_main(self, args: list[str], summary: bool = True) -> None:
        assert not summary, "a table has lines of its own"
        self.calls.append(args)
        options = dict(option.removeprefix("--").split("=", 1) for option in args[1:])
        folder = Path(options["trainer.default_root_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").touch()
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        (folder / "artifact").mkdir()
        file = Path(next(a for a in args if "/schemes/" in a).rpartition("=")[2])
        scheme = yaml.safe_load(file.read_text())
        about = {
            "method": next(Path(a).stem for a in args if "/methods/" in a),
            "scheme_name": Scheme.from_dict(scheme["model"]["init_args"]["scheme"]).name,
            "seed": int(options["data.init_args.seed"]),
            "activation_mode": options.get(
                "model.init_args.scheme.activation_mode", "static_tensor"
            ),
            "scales": [
                float(options.get(f"model.init_args.family.init_args.{name}_scale", 1))
                for name in ("outlier", "sink")
            ],
        }
        (folder / "artifact" / "quantization.json").write_text(json.dumps(about))

    def load_artifact(self, path: str, family: type, packed: bool) -> SimpleNamespace:
        assert not packed, "tables are of the fake-quantized model"
        from qvlm_lightning.models import Tiny

        about = json.loads((Path(path) / "quantization.json").read_text())
        family = Tiny(*about["scales"])
        model = family.load_model()
        manifest = {
            **about,
            **family.describe(),
            "model": family.fingerprint(model),
            "calibration_ids": [],
        }
        noise = torch.Generator().manual_seed(about["seed"])
        model.lm_head.weight += 0.1 * torch.randn(model.lm_head.weight.shape, generator=noise)
        structure = SimpleNamespace(keep_only_quantized=lambda: None)
        return SimpleNamespace(
            packed=None,
            model=model,
            processor=family.load_processor(),
            manifest=manifest,
            structure=structure,
        )


@pytest.fixture
def calibrations(monkeypatch) -> Calibrations:
    made = Calibrations()
    monkeypatch.setattr(table_row, "train_main", made.train_main)
    # a second each; test_an_option_that_is_refused does it
    monkeypatch.setattr(TableConfigs, "check", lambda self, calibration: None)
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
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    variants = {(r["method"], r["seed"], r["outlier_scale"]) for r in rows}
    assert len(variants) == 2 + 8
    assert {r["stress"] for r in rows if r["outlier_scale"] == 4.0} == {True}
    minus = [r for r in rows if r["metric"] == "accuracy_minus_rtn" and r["task"] == "overall"]
    assert len(minus) == 4
    printed = capsys.readouterr().out
    assert "W4A4 qvlm" in printed
    assert "mean over 2 calibration seeds" in printed
    assert "stress: norm channels ×4" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table.png").stat().st_size > 10_000


def test_a_table_with_a_sink(calibrations, tmp_path):
    """Every sink scale with every outlier scale; folders, options, rows and steps apart."""
    given = {"outlier_scales": [4.0], "sink_scales": [1.0, 50.0], "questions": 4}
    assert table.main(options(tmp_path, steps=[["qvlm w4a4", "rtn w4a4"]], **given)) == 0
    found = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert found == {"tiny-k4", "tiny-k4-sink50"}
    options_of = "--model.init_args.family.init_args"
    stress = [[o for o in call if "_scale=" in o] for call in calibrations.calls]
    outlier, sink = f"{options_of}.outlier_scale=4.0", f"{options_of}.sink_scale=50.0"
    assert stress == [[outlier]] * 2 + [[outlier, sink]] * 2
    written = json.loads((tmp_path / "results.json").read_text())
    rows = {(r["method"], r["outlier_scale"], r["sink_scale"]) for r in written["rows"]}
    assert rows == {(name, 4, sink) for name in ("fp", "rtn", "qvlm") for sink in (1, 50)}
    assert {(r["outlier_scale"], r["sink_scale"]) for r in written["steps"]} == {(4, 1), (4, 50)}
    assert "stress: norm channels ×4, sink ×50" in (tmp_path / "table.md").read_text()


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


def test_a_table_that_another_process_makes_is_left_alone(calibrations, tmp_path):
    (tmp_path / LOCK).write_text('{"host": "node7", "pid": 1}')
    with pytest.raises(InputError, match="process 1 on host node7"):
        table.main(options(tmp_path))
    assert calibrations.calls == []


def test_an_interrupted_calibration_is_resumed(calibrations, tmp_path):
    calibrations.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        table.main(options(tmp_path))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
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


ROW = {"name": "per-layer", "method": "cdm", "scheme": "w4a4", "options": ["--seed_everything=7"]}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"variants": ["magic w4a4"]}, r"magic\.yaml'; allowed are ablation/aespa_mbq, .*cdm, "),
        ({"variants": ["rtn"]}, "variant 'rtn' is not a method and a scheme"),
        ({"variants": []}, "the plan compares nothing"),
        ({"variants": ["../rtn w4a4"]}, "name is '..'; allowed are letters"),
        ({"variants": ["rtn w4a4", "rtn w4a4"]}, "two variants are 'rtn-w4a4'; give one of"),
        ({"variants": [{"method": "rtn"}]}, "has no scheme; give a file in configs/schemes"),
        ({"variants": [ROW | {"seed": 1}]}, "has the key 'seed'; allowed are name, method, scheme"),
        ({"variants": [ROW | {"name": "a/b"}]}, "name is 'a/b'; allowed are letters"),
        ({"variants": [ROW | {"options": "--x=1"}]}, "'--x=1'; allowed is a list of texts"),
        ({"steps": [["rtn w4a4", "veo w4a4"]]}, "allowed are two of the variants rtn w4a4, qvlm"),
        ({"steps": [["rtn w4a4"]]}, "step is \\['rtn w4a4'\\]; allowed are two of the variants"),
        ({"headline": "veo w4a4"}, "headline is 'veo w4a4'; allowed are the variants rtn w4a4"),
        ({"model": "huge"}, r"huge\.yaml'; allowed are joined, tiny"),
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

    def stale(path, family, packed):
        loaded = original(path, family, packed)
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


def test_a_scheme_file_may_have_overrides_and_whatever_name(calibrations, tmp_path):
    """The artifact's name of the scheme says more than the file's name does."""
    table.main(options(tmp_path))
    path = tmp_path / "tiny-k1" / "seed0" / "qvlm-w4a4" / "artifact" / "quantization.json"
    path.write_text(path.read_text().replace('"w4a4"', '"w4a4+a8_7ced"'))
    table.main(options(tmp_path))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    named = {row["scheme"] for row in rows if row["method"] == "qvlm" and row["variant"] == "qvlm"}
    assert named == {"w4a4+a8_7ced"}
    table.main(options(tmp_path, variants=["rtn w4a16_g32_sym"]))  # of the decoder alone
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    widths = "vision-w16a16_projector-w16a16_language-w4a16"
    assert {row["scheme"] for row in rows if row["method"] == "rtn"} == {widths}


def test_a_scheme_file_holds_a_scheme(tmp_path):
    """With or without ``init_args``, as ``train.py`` takes it."""
    (tmp_path / "schemes").mkdir()
    file, row = tmp_path / "schemes" / "mine.yaml", PlannedVariant("rtn", "mine", "rtn")
    for text in ("model: {init_args: {scheme: %s}}", "model: {scheme: %s}"):
        file.write_text(text % "{language: {weight_bits: 3, activation_bits: 16}}")
        scheme = planned_scheme(TablePlan(configs=str(tmp_path)), row)
        assert (scheme.language.name, scheme.vision.name) == ("w3a16", "w4a4")
    for text in ("", "model.scheme: {group_size: 32}"):
        file.write_text(text)
        with pytest.raises(InputError, match=r"mine.yaml' has no model.init_args.scheme; write"):
            planned_scheme(TablePlan(configs=str(tmp_path)), row)


def test_a_scheme_that_cannot_be_read_is_refused_before_work(calibrations, tmp_path):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs" / "schemes" / "mine.yaml").write_text("model.scheme: {group_size: 32}")
    rows = ["rtn w4a4", "rtn mine"]
    with pytest.raises(InputError, match=r"mine.yaml' has no model.init_args.scheme; write"):
        table.main(options(tmp_path / "run", variants=rows, configs=tmp_path / "configs"))
    assert calibrations.calls == []


def test_options_of_the_plan_may_change_the_scheme(calibrations, tmp_path):
    wider = "--model.init_args.scheme.language.weight_bits=8"
    table.main(options(tmp_path, variants=["rtn w4a4"], options=[wider]))
    path = tmp_path / "tiny-k1" / "seed0" / "rtn-w4a4" / "artifact" / "quantization.json"
    widths = "vision-w4a4_projector-w4a4_language-w8a4"
    path.write_text(path.read_text().replace('"w4a4"', f'"{widths}"'))
    table.main(options(tmp_path, variants=["rtn w4a4"], options=[wider]))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert widths in {row["scheme"] for row in rows}


def test_unknown_option_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        program(["table", "--sheds=[0]"])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1


def slow_but(first: str, names: list[Any]) -> list[Any]:
    """Return parameters of which only the one called ``first`` runs with the quick tests."""
    return [n if n.stem == first else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize(
    "path", slow_but("demo", sorted((CONFIGS / "table").glob("*.yaml"))), ids=lambda p: p.stem
)
def test_every_plan_can_be_carried_out(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    # photographs are the user's
    run = table_run.TableRun(table.parse_plan([f"--config={path}", "--fidelity=null"]))
    assert run.calibrations
    folders = [calibration.folder for calibration in run.calibrations]
    assert len(set(folders)) == len(folders)


def rows_of(path: Path, **wanted) -> list[dict]:
    rows = json.loads(path.read_text())["rows"]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_a_row_with_options_of_its_own(calibrations, evaluated, tmp_path, capsys):
    table.main(options(tmp_path, variants=["rtn w4a4", "cdm w4a4", ROW], options=["--x=1"]))
    folder = tmp_path / "tiny-k1" / "seed0" / "per-layer-w4a4"
    own = calibrations.calls[-1]
    assert f"--trainer.default_root_dir={folder}" in own
    assert own[-2:] == ["--x=1", "--seed_everything=7"]
    assert calibrations.calls[1][-1] == "--x=1"
    assert evaluated[-1] == "per-layer-w4a4-static_tensor-k1-s0"
    named = rows_of(tmp_path / "results.json", variant="per-layer", task="overall")
    assert {row["method"] for row in named} == {"cdm"}
    assert "accuracy_minus_rtn" in {row["metric"] for row in named}
    assert "W4A4 per-layer" in capsys.readouterr().out


def test_a_row_may_have_another_activation_mode(calibrations, evaluated, tmp_path):
    dynamic = calibrations.load_artifact

    def load_artifact(path, family, packed):
        loaded = dynamic(path, family, packed)
        if "token" in str(path):
            loaded.manifest["activation_mode"] = "dynamic_token"
        return loaded

    evaluation_module.load_artifact = load_artifact  # the fixture's patch is undone afterwards
    option = ["--model.scheme.activation_mode=dynamic_token"]
    given = [
        {"name": f"{method}-token", "method": method, "scheme": "w4a4", "options": option}
        for method in ("rtn", "cdm")
    ]
    table.main(options(tmp_path, variants=["rtn w4a4", *given]))
    assert evaluated[-1] == "cdm-token-w4a4-dynamic_token-k1-s0"
    # round-to-nearest in the same mode is what it is compared with
    (minus,) = rows_of(
        tmp_path / "results.json", metric="accuracy_minus_rtn", task="overall", variant="cdm-token"
    )
    assert minus["value"] == 0.0


def test_a_method_in_a_folder_and_a_scheme_of_the_same_widths(calibrations, evaluated, tmp_path):
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    (configs / "methods" / "paper").mkdir(exist_ok=True)
    shutil.copy(configs / "methods" / "cdm.yaml", configs / "methods" / "paper" / "cdm.yaml")
    variants = ["cdm w4a4", "paper/cdm w4a4", "cdm w4a4_g128"]
    root = tmp_path / "run"
    table.main(options(root, variants=variants, configs=str(configs), headline="paper/cdm w4a4"))
    assert evaluated[-3:] == [
        f"{name}-w4a4-static_tensor-k1-s0" for name in ("cdm", "paper-cdm", "cdm-g128")
    ]
    assert (root / "artifact").is_dir()
    with pytest.raises(InputError, match=r"magic\.yaml'; allowed are .*cdm, .*paper/cdm, "):
        table.main(options(root, variants=["magic w4a4"], configs=str(configs)))


def test_an_option_that_is_refused_ends_before_work(tmp_path):
    wrong = ROW | {"options": ["--model.init_args.wings=2"]}
    with pytest.raises(InputError, match=r"variant 'per-layer w4a4': model: option 'wings' is not"):
        table.main(options(tmp_path / "run", variants=["rtn w4a4", wrong]))
    assert not (tmp_path / "run").exists()


def test_a_row_is_not_taken_for_one_of_other_options(calibrations, tmp_path):
    table.main(options(tmp_path, variants=[ROW]))
    other = ROW | {"options": []}
    with pytest.raises(InputError, match=r"holds 'per-layer-w4a4' made with options \['--seed"):
        table.main(options(tmp_path, variants=[other]))
    table.main(options(tmp_path, variants=[other | {"name": "per-site"}]))
    # the first row is not forgotten when a plan leaves it out
    with pytest.raises(InputError, match="give the row another name"):
        table.main(options(tmp_path, variants=[other]))


def test_a_row_is_not_taken_for_one_of_other_files(calibrations, tmp_path):
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    root = tmp_path / "run"
    given = options(root, configs=str(configs))
    table.main(given)
    path = configs / "methods" / "rtn.yaml"
    path.write_text(f"# a comment changes nothing\n{path.read_text()}")
    table.main(given)
    path.write_text(path.read_text() + "seed_everything: 5\n")
    with pytest.raises(InputError, match="holds 'rtn-w4a4' made when its configuration files said"):
        table.main(given)


def test_splits_share_calibrations_and_nothing_else(calibrations, evaluated, tmp_path, capsys):
    table.main(options(tmp_path, split="development"))
    assert "Results, development split" in capsys.readouterr().out
    assert calibrations.calls[0].count("--data.init_args.evaluation_split=development") == 1
    table.main(options(tmp_path, split="test"))
    assert len(calibrations.calls) == 2
    assert "Results, test split" in (tmp_path / "table.md").read_text()
    assert "Results, development split" in (tmp_path / "table-development.md").read_text()
    for name, split in (("results", "test"), ("results-development", "development")):
        rows = rows_of(tmp_path / f"{name}.json")
        assert {row["split"] for row in rows} == {split}
    assert (tmp_path / "table-development.png").is_file()
    answers = tmp_path / "tiny-k1" / "predictions"
    names = sorted(path.stem for path in answers.glob("rtn*.json"))
    assert names == ["rtn-w4a4-static_tensor-k1-s0", "rtn-w4a4-static_tensor-k1-s0-development"]


def test_means_over_seeds_are_in_the_results(calibrations, tmp_path):
    table.main(options(tmp_path, seeds=[0, 1, 2], variants=["rtn w4a4"]))
    written = json.loads((tmp_path / "results.json").read_text())
    for metric in ("accuracy", "kl"):
        own = [
            r["value"]
            for r in written["rows"]
            if (r["method"], r["metric"], r["task"]) == ("rtn", metric, "overall")
        ]
        (mean,) = [
            m
            for m in written["means"]
            if (m["method"], m["metric"], m["task"]) == ("rtn", metric, "overall")
        ]
        assert len(own) == 3
        assert mean["value"] == pytest.approx(sum(own) / 3)
        assert (mean["low"], mean["high"], mean["seeds"]) == (min(own), max(own), [0, 1, 2])
        assert mean["ci_low"] < mean["value"] < mean["ci_high"]


def test_search_of_the_artifact_is_in_every_row(calibrations, tmp_path):
    table.main(options(tmp_path))
    path = tmp_path / "tiny-k1" / "seed0" / "qvlm-w4a4" / "artifact" / "quantization.json"
    told = {"objective": "normalized", "candidates": [1.0, 0.98], "search": {"layer_forwards": 42}}
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    table.main(options(tmp_path))
    rows = rows_of(tmp_path / "results.json", method="qvlm")
    assert rows
    assert {(r["objective"], tuple(r["candidates"]), r["layer_forwards"]) for r in rows} == {
        ("normalized", (1.0, 0.98), 42)
    }
    assert "| 42 |" in (tmp_path / "table.md").read_text()


def test_steps_of_an_ablation(calibrations, tmp_path, capsys):
    table.main(options(tmp_path, seeds=[0, 1], steps=[["qvlm w4a4", "rtn w4a4"]]))
    written = json.loads((tmp_path / "results.json").read_text())
    accuracy, kl = written["steps"]
    assert (accuracy["row"], accuracy["against"], accuracy["seeds"]) == (
        *("qvlm w4a4", "rtn w4a4", [0, 1]),
    )
    minus = [
        row["value"]
        for row in written["rows"]
        if (row["metric"], row["task"]) == ("kl_minus_rtn", "overall")
    ]
    assert kl["value"] == pytest.approx(sum(minus) / 2)
    assert "Steps" in capsys.readouterr().out
    assert "### Steps, test split" in (tmp_path / "table.md").read_text()


def test_the_plan_of_the_document_can_be_carried_out(tmp_path):
    text = (CONFIGS.parent / "docs" / "evaluation.md").read_text()
    (plan,) = re.findall(r"^```yaml\n(variants:.*?)^```", text, re.S | re.M)
    (tmp_path / "plan.yaml").write_text(plan)
    given = [f"--config={tmp_path / 'plan.yaml'}", f"--configs={CONFIGS}"]
    run = table_run.TableRun(table.parse_plan([*given, f"--root={tmp_path / 'run'}"]))
    assert [variant.name for variant in run.variants] == ["rtn", "sequential", "per-token"]

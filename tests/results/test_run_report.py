"""What a run says of itself: lines on the terminal, report.json, and the page made of it."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from qvlm_lightning.__main__ import main
from qvlm_lightning.evaluation.cli import EvaluationCLI
from qvlm_lightning.models import Tiny
from qvlm_lightning.results.next_steps import (
    evaluation_command,
    steps_after_evaluation,
    steps_after_fit,
)
from qvlm_lightning.results.run_facts import run_facts

ROOT = Path(__file__).parents[2]


@pytest.fixture
def report(finished) -> dict[str, Any]:
    return json.loads((finished.root / "report.json").read_text())


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the run folder to break."""
    return shutil.copytree(finished.root, tmp_path / "run")


def page(root: Path) -> str:
    return (root / "report.html").read_text(encoding="utf-8")


def change(root: Path, **values: Any) -> None:
    told = json.loads((root / "report.json").read_text())
    (root / "report.json").write_text(json.dumps(told | values))


# --- the terminal -----------------------------------------------------------------------------


def test_the_lines_at_the_end_say_what_the_report_has(finished, report):
    lines = dict(re.findall(r"^([a-zJ ]+?)  +(\S.*)$", finished.said, flags=re.MULTILINE))
    scores = [[x for k, x in b.items() if k not in ("tower", "first", "last")]
              for b in report["objectives"]]  # fmt: skip
    before, after = (sum(s[i] for s in scores) / len(scores) for i in (0, -1))
    assert lines["objective J"].startswith(f"{before:.4g} on min-max ranges, {after:.4g} chosen")
    losses = [m["total"] for m in report["loss_fixed"]]
    assert lines["loss"] == f"{losses[0]:.4g} first, {losses[-1]:.4g} last"
    assert lines["scheme"] == "w4a4, activations static_tensor"
    assert lines["method"] == "qvlm (JointSearch, objective normalized)"
    assert lines["quantized"].startswith(f"{len(report['quantized'])} Linear layers (vision ")
    count = len(report["partition"]["language"])
    assert f"language 6 layers in {count} blocks" in lines["partition"]
    worst = min(report["sqnr"]["decided"].values())
    assert f"worst {worst:.1f} dB" in lines["signal to noise"]
    assert str(finished.root / "report.html") in lines["files"]
    assert len(finished.said.splitlines()) < 24


def test_the_next_command_scores_this_artifact(finished, monkeypatch):
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(r"^  (\S*python eval\.py .*)$", finished.said, flags=re.MULTILINE)
    words = shlex.split(command)
    program = EvaluationCLI([*words[2:], "--data.evaluation_count=4"])
    assert program.model.artifact == str(finished.root / "artifact")
    assert Path(program.trainer.default_root_dir) == finished.root / "eval"


@pytest.mark.parametrize("activated", [True, False])
def test_commands_can_be_pasted_whether_or_not_the_environment_is_activated(
    tmp_path, monkeypatch, activated
):
    """Only ``bin/`` of the environment has our libraries, and a shell may find another Python."""
    for place in (tmp_path / "other", tmp_path / ".venv" / "bin"):
        place.mkdir(parents=True)
        for name in ("python", "tensorboard"):
            (place / name).write_text("#!/bin/sh\n")
            (place / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python3.11"))
    monkeypatch.setenv("PATH", str(tmp_path / (".venv/bin" if activated else "other")))
    monkeypatch.chdir(tmp_path)
    commands = [*steps_after_fit(Path("run"), {}), *steps_after_evaluation(Path("run"))]
    called = [shlex.split(command)[0] for _, command in commands]
    names = ["python", "tensorboard", "python", "python", "python"]
    assert called == (names if activated else [f".venv/bin/{name}" for name in names])
    monkeypatch.chdir(tmp_path / "other")
    names = names if activated else [f"{tmp_path}/.venv/bin/{name}" for name in names]
    assert [shlex.split(c)[0] for _, c in steps_after_fit(Path("run"), {})] == names[:3]


def test_the_command_for_data_of_ones_own_names_model_and_data():
    family = {"class_path": "qvlm_lightning.models.Llava", "init_args": {"path": "my llava"}}
    data = {
        "class_path": "qvlm_lightning.data.ChatData",
        "init_args": {
            "name": "chat",
            "calibration": {"path": "train.jsonl"},
            "evaluation": {"path": "test.jsonl", "split": None},
            "batch_size": 8,
        },
    }
    config = {"model": {"init_args": {"family": family}}, "data": data}
    words = shlex.split(evaluation_command(Path("runs/a b"), config))
    assert words[1:4] == ["eval.py", "--config", "configs/eval/chat.yaml"]
    assert "--model.init_args.family.init_args.path=my llava" in words
    assert "--data.init_args.evaluation.path=test.jsonl" in words
    assert words[-4:] == [
        "--model.artifact", "runs/a b/artifact", "--trainer.default_root_dir", "runs/a b/eval",
    ]  # fmt: skip
    assert not any("train.jsonl" in word or "batch_size" in word for word in words)


def test_no_foreign_note_is_seen(finished):
    for note in ("litlogger", "num_workers", "GPU available", "weights_only", "LeafSpec", "Tip:"):
        assert note not in finished.told


def test_bars_name_phase_block_objective_and_loss(finished):
    assert re.search(r"search projector +0%.* \d+:\d\d<\?, block 1/1: layer 0", finished.told)
    assert re.search(r"search language 100%.*<00:00, J [\d.e-]+->[\d.e-]+", finished.told)
    assert re.search(r"optimisation 100%.*\d+:\d\d<.*, epoch 1, loss [\d.]+", finished.told)


# --- report.json ------------------------------------------------------------------------------


def test_phases_have_seconds_and_memory(report):
    phases = {"loading the model", "statistics", "dependency", "search", "optimisation"}
    assert phases <= set(report["spent"])
    assert all(spent["seconds"] >= 0 for spent in report["spent"].values())
    assert report["spent"]["search"]["seconds"] >= 0.9 * report["search"]["seconds"] > 0
    assert all(2**20 < spent["host_bytes"] < 2**40 for spent in report["spent"].values())


def test_full_size_is_that_of_all_parameters(report):
    total = 0
    for parameter in Tiny().load_model().parameters():
        total += parameter.numel() * parameter.element_size()
    assert sum(size["full"] for size in report["sizes"].values()) == total
    assert sum(size["packed"] for size in report["sizes"].values()) < total / 3


def test_signal_to_noise_is_measured_before_the_search_and_after_it(report):
    before, after = report["sqnr"]["minmax"], report["sqnr"]["decided"]
    assert set(before) == set(after) == set(report["quantized"])
    assert fmean(after.values()) > fmean(before.values()) + 0.5


def test_histograms_count_what_the_bounds_cut(report):
    clips = report["clips"]
    assert set(clips) == set(report["percentiles"])
    for site, one in clips.items():
        assert sum(one["counts"]) > 100, site
        if report["percentiles"][site] == 1.0 and site.startswith("model.language_model"):
            assert one["low"] <= one["from"], site
            assert one["to"] <= one["high"], site
    clipped = [clips[site] for site, p in report["percentiles"].items() if p < 1]
    assert any(one["from"] < one["low"] or one["high"] < one["to"] for one in clipped)


# --- the page ---------------------------------------------------------------------------------


def test_the_page_has_every_section_and_needs_nothing_else(finished):
    text = page(finished.root)
    for title in (
        "What was merged, and why",
        "What the search bought",
        "Percentiles",
        "Clip bounds against the distribution",
        "Signal to noise, before and after",
        "Which layer hurts",
        "Time, memory and size",
        "Where it comes from",
    ):
        assert f"<h2>{title}</h2>" in text
    assert text.count("<svg") == text.count("</svg>") > 15
    assert "<script" not in text
    assert "://" not in text
    assert len(text) < 500_000
    assert "prefers-color-scheme: dark" in text
    for version in ("torch", "transformers"):
        assert f"<dt>{version}</dt>" in text
    assert "calibration_pairs: 4" in text


def test_the_verb_makes_the_same_page_again(run, capsys):
    before = page(run)
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    # the folder's name is not the same
    assert len(page(run)) == pytest.approx(len(before), abs=2000)
    said = capsys.readouterr().out
    assert f"--model.artifact {run / 'artifact'}" in said
    again = page(run)
    assert main(["report", str(run)]) == 0
    assert page(run) == again


def test_what_is_not_there_is_left_out(run):
    change(run, dependency={}, loss_fixed=[], sensitivity=None, clips={}, sqnr={}, spent={})
    (run / "config.yaml").unlink()
    assert main(["report", str(run)]) == 0
    titles = re.findall(r"<h2>(.*?)</h2>", page(run))
    assert titles == [
        "What to do next", "What the search bought", "Percentiles", "Tokens that stand out",
        "Time, memory and size", "Where it comes from",
    ]  # fmt: skip


EVIL = "<script>alert(1)</script>\x1b[2J\u202e\"'" + "x" * 5000


def test_text_of_files_is_escaped_and_bounded(run, report, capsys):
    clips = {EVIL: next(iter(report["clips"].values()))}
    model = {"family": EVIL, "path": EVIL}
    notes = [EVIL] * 1000
    change(
        run,
        method=EVIL,
        model=model,
        clips=clips,
        warnings=notes,
        partition={EVIL: [[0, 1]]},
        dependency={EVIL: [0.5]},
        threshold={EVIL: 0.25},
        percentiles={f"{EVIL}.0.{EVIL}": 0.5},
        ignored={EVIL: EVIL},
        versions={EVIL: EVIL},
        calibration_ids=[EVIL] * 5000,
    )
    (run / "config.yaml").write_text(f"a: {json.dumps(EVIL)}\nb: <script>\n")
    assert main(["report", str(run)]) == 0
    text = page(run)
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;" in text
    assert len(text) < 1_000_000
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert len(said) < 20_000


def test_a_configuration_is_shown_and_never_executed(run, tmp_path):
    witness = tmp_path / "witness"
    (run / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{witness}']\n")
    assert main(["report", str(run)]) == 0
    assert not witness.exists()
    bomb = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))
    (run / "config.yaml").write_text(f"a0: &a0 [x]\n{bomb}\n")
    assert main(["report", str(run)]) == 0
    assert "a29: &amp;a29" in page(run)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read as a report"),
        ("{", "cannot be read as a report"),
        ("[" * 100_000, "cannot be read as a report"),
        ("[]", "is not the report of a calibration"),
        ('{"percentiles": 3}', "does not hold what a report holds"),
        ('{"percentiles": {}, "method": "x"}', "does not hold what a report holds"),
    ],
)
def test_what_is_no_report_is_one_sentence(tmp_path, capsys, content, sentence):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"partition": {"language": 7}},
        {"objectives": [{"first": 0}]},
        {"percentiles": {"a.0.b": "high"}},
        {"clips": {"a": {"counts": ["x"], "from": 0, "to": 1, "low": 0, "high": 1}}},
        {"sizes": {"vision": {"full": "big", "packed": 1}}},
        {"spent": {"search": {}}},
        {"units": []},
        {"scheme": None},
    ],
)
def test_a_report_with_other_things_in_it_is_one_sentence(run, capsys, values):
    (run / "report.html").unlink()
    change(run, **values)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run)])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "does not hold what a report holds" in told
    assert not (run / "report.html").exists()


def test_numbers_that_are_none_do_not_break_figures(run, report):
    nan = float("nan")
    change(
        run,
        dependency={"language": [nan] * 5},
        loss_fixed=[m | {"total": nan} for m in report["loss_fixed"]],
        sqnr={"minmax": {}, "decided": dict.fromkeys(report["sqnr"]["decided"], nan)},
    )
    assert main(["report", str(run)]) == 0
    assert 'height="nan"' not in page(run)


def test_older_reports_have_a_page_too(run):
    told = json.loads((run / "report.json").read_text())
    for key in ("spent", "sizes", "sqnr", "clips", "warnings", "scheme_name", "loss_fixed"):
        told.pop(key)
    (run / "report.json").write_text(json.dumps(told))
    assert main(["report", str(run)]) == 0
    assert dict(run_facts(told))["scheme"] == "w4a4, activations static_tensor"


def test_the_configuration_is_that_of_the_run(finished):
    told = yaml.safe_load((finished.root / "config.yaml").read_text())
    assert told["trainer"]["default_root_dir"] == str(finished.root)

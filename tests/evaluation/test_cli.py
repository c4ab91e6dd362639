"""The evaluation program: rows, tables, faults in one sentence."""

import json
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import pytest

from qvlm_lightning.evaluation.cli import eval_main
from qvlm_lightning.evaluation.progress import QuestionBar
from qvlm_lightning.results.predictions import Predictions

CONFIGS = Path(__file__).parents[2] / "configs"


def arguments(tmp_path, *more: str) -> list[str]:
    return [
        f"--config={CONFIGS / 'eval' / 'tiny.yaml'}",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
        "--data.init_args.evaluation_count=20",
        *more,
    ]


def test_program_writes_rows_and_prints_the_table(tmp_path, capsys):
    eval_main(arguments(tmp_path))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["metric"] for row in rows} == {
        *("accuracy", "accuracy_blind", "accuracy_shuffled", "parse_failures", "seconds")
    }
    assert "full precision" in capsys.readouterr().out
    assert "| full precision |" in (tmp_path / "results.md").read_text()


def test_program_leaves_out_controls_and_shows_questions_per_second(tmp_path, capsys, names):
    bar = "--trainer.enable_progress_bar=true"
    cli = eval_main([*arguments(tmp_path), bar, "--controls=false"])
    assert names() == ["fp-k1"]
    assert isinstance(cli.trainer.progress_bar_callback, QuestionBar)
    printed = capsys.readouterr().err
    assert "fp-k1: 100%|██████████| 20/20" in printed
    assert " questions/s]" in printed


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--model.artifact=/nowhere", "'/nowhere' is not an artifact: it has no quantization.json"),
        ("--data.evaluation_count=0", "evaluation_count is 0; allowed are integers of at least 1"),
        ("--model.init_args.wings=2", "wings"),
        ("--data.evaluation_count=many", "expected int, got many"),
        ("--trainer.precision=bf16-true", "allowed is '32-true', because quantizers compute in"),
        ("--data.evaluation_split=train", "train is given; allowed: 'test', 'development'"),
    ],
)
def test_user_faults_are_one_sentence(tmp_path, capsys, option, sentence):
    with pytest.raises(SystemExit) as end:
        eval_main(arguments(tmp_path, option))
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert sentence in printed.err
    assert printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) == 1


def test_both_splits_in_one_folder_stay_apart(tmp_path, capsys, names):
    eval_main(arguments(tmp_path, "--controls=false"))
    development = "--data.evaluation_split=development"
    eval_main(arguments(tmp_path, development, "--controls=false"))
    assert names() == ["fp-k1", "fp-k1-development"]
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["split"] for row in rows} == {"test", "development"}
    assert "Results, development split" in capsys.readouterr().out
    ids = [
        json.loads((tmp_path / "predictions" / f"{name}.jsonl").read_text().splitlines()[0])["id"]
        for name in names()
    ]
    assert ids == ["test-0-000000", "development-0-000000"]
    key = json.loads((tmp_path / "predictions" / "fp-k1-development.json").read_text())["asked"]
    assert key["split"] == "development"


def test_answers_to_another_prompt_are_named_and_not_compared(tmp_path, capsys):
    """The folder of a run may hold answers that an older prompt was given."""
    eval_main(arguments(tmp_path, "--controls=false"))
    folder = tmp_path / "predictions"
    full = Predictions.load(folder, "fp-k1")
    older = full.asked | {"questions": "0"}
    variant = replace(full.variant, method="rtn", scheme="w4a4", activation_mode="static_tensor")
    replace(full, variant=replace(variant, seed=0), asked=older).save(folder)
    eval_main(arguments(tmp_path, "--controls=false"))
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    metrics = {row["metric"] for row in rows if row["method"] == "rtn"}
    assert metrics == {"accuracy", "parse_failures", "seconds"}
    sentence = "was asked with another prompt than full precision: the two are not compared"
    assert sentence in (tmp_path / "results.md").read_text()
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_a_printed_table_fits_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    eval_main(arguments(tmp_path, "--controls=false"))
    printed = capsys.readouterr().out.splitlines()
    table = list(takewhile(lambda line: not line.startswith("model "), printed))
    assert any("full precision" in line for line in table)
    assert max(map(len, table)) <= 80  # lines that follow are copied, the terminal breaks them

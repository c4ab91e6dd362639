"""The leaderboard of the joined model: what its command line reaches."""

import argparse
from pathlib import Path

import pytest

from qvlm_lightning.commands._leaderboard_plan import table_plans
from tools.joined import leaderboard

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    """The model, by name only."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def test_folders_of_the_command_line_reach_every_table(model):
    given = {"data": Path("questions"), "photographs": ["one", "two"], "model": model}
    args = argparse.Namespace(config=leaderboard.PLAN, **given)
    plan = leaderboard.plan_of(args, ["--root=elsewhere", "--max_hours=2"])
    assert plan.max_hours == 2
    tables = table_plans(plan)
    assert len(tables) == 4
    for table in tables:
        assert table.root == "elsewhere"
        assert f"--model.init_args.family.init_args.path={model}" in table.sources
        for part in ("evaluation", "calibration"):
            assert f"--data.init_args.{part}.path=questions" in table.sources
        assert table.fidelity.photographs == ["one", "two"]
        assert table.questions == 500


def test_the_estimate_ends_without_work(model, capsys):
    options = ["--data=x", "--photographs=y", f"--model={model}", f"--root={model.parent / 'run'}"]
    assert leaderboard.main([*options, "--estimate_only=true"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("28 rows, 0 of them calibrated")
    assert not (model.parent / "run").exists()


def test_without_the_model_one_sentence_says_what_makes_it(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        leaderboard.main(["--data=x", "--photographs=y", f"--model={tmp_path}"])
    assert end.value.code == 2
    assert "run `make joined` first" in capsys.readouterr().err

"""Your own data through the programs: calibrated with and without answers, evaluated, refused."""

import json
from pathlib import Path

import pytest

from qvlm_lightning.cli import train_main
from qvlm_lightning.evaluation.cli import eval_main

CONFIGS = Path(__file__).parents[1] / "configs"
SIZES = {"calibration_pairs": 8, "search_pairs": 4, "batch_size": 4}


def configs(*names: str) -> list[str]:
    return [f"--config={CONFIGS / name}.yaml" for name in names]


def calibrate(run: Path, *options: str, method: str = "rtn") -> None:
    rooms = ("base", f"methods/{method}", "schemes/w8a8", "models/tiny")
    sizes = [f"--data.{name}={size}" for name, size in SIZES.items()]
    own = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={run}"]
    data = [option for option in options if option.startswith("--config")]
    rest = [option for option in options if not option.startswith("--config")]
    train_main(["fit", *configs(*rooms), *data, *sizes, *own, *rest])


@pytest.fixture
def mute(shapes) -> Path:
    """The chats of the train split without their answers."""
    rows = [json.loads(line) for line in (shapes / "train.jsonl").read_text().splitlines()]
    short = [row | {"messages": row["messages"][:1]} for row in rows]
    file = shapes / "mute.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in short))
    return file


@pytest.mark.slow
def test_optimising_without_answers(mute, tmp_path):
    run = tmp_path / "run"
    options = ["--model.epochs=1", f"--data.calibration.path={mute}"]
    calibrate(run, *configs("data/chat"), *options, method="veo")
    report = json.loads((run / "report.json").read_text())
    assert (
        "8 of 8 calibration samples have no answer: L_reg (eq. 10) is 0 throughout"
        in (report["notes"])
    )
    assert [epoch["reg"] for epoch in report["loss"]] == [0.0]
    assert all(epoch["err"] > 0 for epoch in report["loss"])
    assert all(name.startswith("mute.jsonl:") for name in report["calibration_ids"])


def test_an_artifact_answers_other_questions_than_it_was_made_with(shapes, tmp_path, capfd):
    run, paths = tmp_path / "run", [f"--data.calibration.path={shapes}"]
    paths += [f"--data.evaluation.path={shapes}"]
    calibrate(run, *configs("data/task", "tasks/easy_vqa"), *paths)
    ids = json.loads((run / "report.json").read_text())["calibration_ids"]
    assert len(ids) == 8
    assert all(name.startswith("train:") for name in ids)
    ask = [*configs("eval/task", "tasks/easy_vqa", "models/tiny"), "--trainer.accelerator=cpu"]
    ask += [f"--model.artifact={run / 'artifact'}", "--controls=false", paths[1]]
    eval_main([*ask, f"--trainer.default_root_dir={tmp_path / 'test'}"])
    about = json.loads(next((tmp_path / "test" / "predictions").glob("rtn*.json")).read_text())
    assert (about["benchmark"], about["n"]) == ("easy_vqa", 12)
    ask += ["--data.evaluation.split=train", f"--trainer.default_root_dir={tmp_path / 'no'}"]
    with pytest.raises(SystemExit):
        eval_main(ask)
    assert "8 calibration samples are also evaluated" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["data/chat"], "there is no calibration set; give data.calibration.path"),
        (["data/chat", "--data.calibration.path=./nowhere"], "'./nowhere' does not exist"),
        (["data/chat", "--data.calibration.path=owner/name"], "hub repository 'owner/name'"),
        (["data/chat", "--data.calibration.path={}/few.jsonl"], "has 1 samples, but 8 were"),
        (["data/chat", "--data.max_turns=0"], "max_turns is 0; allowed are integers of at least 1"),
        (
            ["data/chat", "--data.max_turns=2", "--data.calibration.path={}/turn.jsonl"],
            "line 1 of '{}/turn.jsonl' has a message 3 of 'assistant'; allowed is user or human",
        ),
        (["data/chat", "--data.calibration.path={}/bad.jsonl"], "line 2 of"),
        (["data/chat", "--data.calibration.path={}/lost.jsonl"], "lost.png' does not exist"),
        (["data/chat", "--data.calibration.path={}"], "holds no parquet files"),
        (["data/task", "tasks/easy_vqa"], "evaluation"),
        (
            ["data/task", "tasks/easy_vqa", "--data.evaluation.path={}"],
            "give a folder with test/questions.json",
        ),
        (
            ["data/task", "tasks/easy_vqa", "--data.evaluation.path=owner/name"],
            "give a folder with test/questions.json",
        ),
    ],
)
def test_a_fault_is_one_sentence_before_anything_is_written(
    tmp_path, capfd, options: list[str], words: str
):
    folder, run = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    (folder / "few.jsonl").write_text('{"question": "Q"}\n')
    roles = ("user", "assistant", "assistant")
    turns = {"messages": [{"role": role, "content": "x"} for role in roles]}
    (folder / "turn.jsonl").write_text(json.dumps(turns))
    (folder / "bad.jsonl").write_text('{"question": "Q"}\n{"query": "Q"}\n')
    lost = [json.dumps({"question": f"Q{i}", "image": "lost.png"}) for i in range(8)]
    (folder / "lost.jsonl").write_text("\n".join(lost))
    data = configs(*(option for option in options if not option.startswith("--")))
    given = [option.format(folder) for option in options if option.startswith("--")]
    if "data/task" in options:
        given += [x.replace("evaluation", "calibration") for x in given]
    with pytest.raises(SystemExit) as end:
        calibrate(run, *data, *given)
    error = capfd.readouterr().err
    assert end.value.code == 2, error
    assert "Traceback" not in error
    last = error.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("error: ")
    assert words.replace("{}", str(folder)) in last
    assert not run.exists()

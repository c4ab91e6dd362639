"""`score`: joining by id, what is counted, what is written, and what is refused."""

import json
import random
import re
from pathlib import Path

import pytest

from qvlm_lightning.__main__ import main
from qvlm_lightning.metrics.grouped import GroupedScore
from qvlm_lightning.metrics.target import WHOLE, Judgement
from qvlm_lightning.tasks.base import Task
from qvlm_lightning.tasks.find import find_task

ROOT = Path(__file__).parents[2]
ROWS = [  # id, answer, kind
    ("a", 3, "cups"),
    ("b", 2, "cups"),
    ("c", 5, "dogs"),
    ("7", 1, "dogs"),
]


@pytest.fixture
def counting(tmp_path, monkeypatch) -> str:
    """Path of the task that docs/adding_a_task.md prints."""
    text = (ROOT / "docs" / "adding_a_task.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    module = f"counting_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{module}.Counting"


@pytest.fixture
def annotations(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"id": name, "image": "x.png", "question": "How many?", "answer": answer, "kind": kind}
        for name, answer, kind in ROWS
    ]
    (folder / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture
def score(tmp_path, counting, annotations):
    """Score answers and return what was written."""

    def run(answers, *options: str, task: str = counting) -> dict:
        file, out = tmp_path / "answers.jsonl", tmp_path / "out" / "score.json"
        lines = answers if isinstance(answers, str) else "\n".join(map(json.dumps, answers))
        file.write_text(lines, encoding="utf-8")
        given = {"task": task, "predictions": file, "annotations": annotations, "json": out}
        argv = [f"--{key}={value}" for key, value in given.items()]
        assert main(["score", *argv, *options]) == 0
        return json.loads(out.read_text())

    return run


def answer(name, text: str) -> dict:
    return {"id": name, "text": text}


RIGHT = [answer("a", "3"), answer("b", "There are 2."), answer("c", "5"), answer(7, "1")]


def test_all_right(score) -> None:
    assert score(RIGHT) == {
        **{"task": "counting", "mode": "exact", "overall": 100.0},
        **{"kind/cups": 100.0, "kind/dogs": 100.0},
        **{"n": 4, "missing": 0, "unparsed": 0, "duplicate": 0, "unknown": 0},
    }


def test_what_is_missing_repeated_and_unknown_is_counted_and_named(score, capsys) -> None:
    given = [
        answer("z", "3"),
        answer("c", "6"),
        answer("c", "5"),  # too late: the first counts
        answer("a", "many"),
        answer("b", "2"),
    ]
    found = score(given)
    assert (found["overall"], found["kind/cups"], found["kind/dogs"]) == (25.0, 50.0, 0.0)
    assert (found["n"], found["missing"], found["unparsed"]) == (4, 1, 1)
    assert (found["duplicate"], found["unknown"]) == (1, 1)
    said = capsys.readouterr()
    assert "1 id without a prediction, counted as wrong: '7'" in said.err
    assert "of which the first counts: 'c'" in said.err
    assert "do not hold, left out: 'z'" in said.err
    assert "25.00" in said.out
    assert "mode exact: 4 questions" in said.out


def test_only_the_first_ids_are_named(score, capsys) -> None:
    score([*RIGHT, *(answer(f"u{i}", "1") for i in range(9))])
    assert "9 ids predicted" in (error := capsys.readouterr().err)
    assert "'u4', ..." in error
    assert "u5" not in error


def test_the_mode_is_the_rule(score) -> None:
    close = [answer("a", "4"), answer("b", "2"), answer("c", "9"), answer("7", "1")]
    assert score(close)["overall"] == 50.0
    found = score(close, "--mode=close")
    assert (found["overall"], found["mode"]) == (62.5, "close")


def test_the_order_of_the_lines_does_not_matter(score) -> None:
    shuffled = random.Random(0).sample(RIGHT, len(RIGHT))
    assert score(shuffled) == score(RIGHT)


def test_empty_lines_other_keys_and_a_byte_order_mark_are_nothing(score) -> None:
    lines = [json.dumps(row | {"prompt": "x"}) for row in RIGHT]
    assert score("\ufeff" + "\n\n".join(lines) + "\r\n \n")["overall"] == 100.0


def test_a_group_without_questions_is_null(score, annotations, monkeypatch) -> None:
    monkeypatch.setattr(Task, "metric", lambda *_: GroupedScore(["kind/cups", "kind/dogs", "x/y"]))
    assert score(RIGHT)["x/y"] is None


def test_a_missing_answer_is_wrong_even_where_empty_text_is_right(score, monkeypatch) -> None:
    def lenient(name: str) -> type:
        task = find_task(name)
        monkeypatch.setattr(task, "judge", lambda *_: Judgement(WHOLE, "yes"))
        return task

    monkeypatch.setattr("qvlm_lightning.commands._scoring.find_task", lenient)
    found = score([answer("a", "")])
    assert (found["overall"], found["missing"], found["unparsed"]) == (25.0, 3, 0)


def test_many_groups_stay_off_the_terminal(score, annotations, capsys) -> None:
    rows = [json.loads(line) for line in (annotations / "test.jsonl").read_text().splitlines()]
    many = [row | {"id": f"{row['id']}{i}", "kind": f"k{i}"} for row in rows for i in range(13)]
    (annotations / "test.jsonl").write_text("\n".join(map(json.dumps, many)))
    found = score([answer("a0", "3")])
    assert sum(name.startswith("kind/") for name in found) == 13
    out = capsys.readouterr().out
    assert "kind/... (13 more" in out
    assert "k7" not in out


@pytest.fixture
def refused(score, capsys):
    def refuse(answers, *options: str, **keywords) -> str:
        with pytest.raises(SystemExit) as end:
            score(answers, *options, **keywords)
        error = capsys.readouterr().err
        assert end.value.code == 2, error
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
        return error

    return refuse


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 of"),
        ("[1]", "it is a list, not an object"),
        ('{"text": "3"}', "it has no 'id'"),
        ('{"id": "a"}', "it has no 'text'"),
        ('{"id": "a", "text": 3}', "its 'text' is a int, not a string"),
        ('{"id": "a", "text": null}', "its 'text' is a NoneType, not a string"),
        ('{"id": true, "text": "3"}', "its 'id' is a bool, not a string"),
        ('{"id": "a", "text": "3", "confidence": "high"}', "'confidence' is a str, not a number"),
        ('{"id": "a", "text": "3", "confidence": NaN}', "'confidence' is nan, not a number"),
        ('{"id": "a", "text": "3", "confidence": 1e999}', "'confidence' is inf, not a number"),
        ("[" * 100_000, "line 2 of"),
    ],
)
def test_a_malformed_line(refused, line: str, words: str) -> None:
    sentence = refused(f"{json.dumps(answer('a', '3'))}\n{line}\n")
    assert words in sentence
    assert "line 2 of" in sentence


def test_predictions_of_something_else(refused) -> None:
    assert "are for 'x', 'y'; the 4 questions have ids such as 'a'" in refused(
        [answer("x", "1"), answer("y", "1")]
    )
    assert "there are no predictions; the 4 questions" in refused("")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mode=loose"], "mode of counting is 'loose'; allowed are exact, close"),
        (["--predictions=nowhere.jsonl"], "predictions 'nowhere.jsonl' are not there"),
        (["--annotations=nowhere"], "annotations 'nowhere' do not exist; a folder with"),
        (["--split=moon"], "split of counting is 'moon'; allowed are test"),
        (["--option=seed=3"], "option of counting is 'seed=3'; allowed are none"),
        (["--task=scienceqa", "--option=random_fallback"], "allowed are random_fallback=VALUE"),
        (["--modes=exact"], "unrecognized arguments: --modes=exact"),
        (["--task=sing"], "task is 'sing'; allowed are "),
        (["--task=..Task"], "task is '..Task'; allowed are "),
        (["--json=."], "json is '.'; allowed is a file"),
        (["--json=pyproject.toml/x.json"], "json is 'pyproject.toml/x.json'; allowed is a file"),
        (["--task=no.such.Task"], "task is 'no.such.Task', but there is no module no"),
        (["--task=pathlib.Path"], "task is 'pathlib.Path', which is not a class of a task"),
        (["--task=pathlib.Nothing"], "which is not a class of a task"),
    ],
)
def test_a_wrong_option(refused, options: list[str], words: str) -> None:
    assert words in refused(RIGHT, *options)


def test_predictions_that_are_no_text(refused, tmp_path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\xff\xfe\x00")
    assert "are not UTF-8 text" in refused(RIGHT, f"--predictions={tmp_path / 'x.bin'}")


def test_questions_that_share_an_id(refused, annotations) -> None:
    file = annotations / "test.jsonl"
    file.write_text(file.read_text() * 2)
    assert "8 questions with 4 different ids" in refused(RIGHT)


def test_annotations_without_answers_or_questions(refused, tmp_path) -> None:
    file = tmp_path / "test.json"
    rows = [{"image": f"{name}.jpg", "question": "what?"} for name in "ab"]
    for held, words in (
        (rows, "no answers to their 2 questions, as those of a test split do; vizwiz has answers"),
        ([], "the annotations hold no questions; vizwiz reads a folder with"),
    ):
        file.write_text(json.dumps(held))
        given = [answer("a.jpg", "x")]
        assert words in refused(given, "--task=vizwiz", f"--annotations={file}")


def test_an_option_that_is_needed(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["score", "--task=x"])
    assert end.value.code == 2
    assert "required: --predictions, --annotations" in capsys.readouterr().err


def test_help_names_the_tasks(capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["score", "--help"])
    assert end.value.code == 0
    assert "--annotations PATH" in capsys.readouterr().out

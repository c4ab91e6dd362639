import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Judgement, Target
from qvlm_lightning.tasks.easy_vqa import EasyVQA

ROWS = [["what color is it?", "teal", 0], ["is it a box?", "no", 0], ["what is it?", "circle", 1]]


@pytest.fixture
def release(tmp_path) -> Path:
    for split in ("test", "train"):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "questions.json").write_text(json.dumps(ROWS))
    return tmp_path


@pytest.mark.parametrize(("path", "split"), [(".", "train"), ("train/questions.json", None)])
def test_layouts(release, path: str, split: str | None) -> None:
    first, second, third = EasyVQA().read(release / path, split)
    assert [q.id for q in (first, second, third)] == ["train:0", "train:1", "train:2"]
    assert [q.target.groups for q in (first, second, third)] == [
        ("kind/colour",),
        ("kind/yes-no",),
        ("kind/shape",),
    ]
    assert third.image == release / "train" / "images" / "1.png"


def test_the_split_to_evaluate_comes_first(release) -> None:
    assert EasyVQA().read(release)[0].id == "test:0"


def test_prompts(release) -> None:
    question = EasyVQA().read(release)[0]
    assert EasyVQA(prompt="bare").text(question) == "what color is it?"
    assert EasyVQA().text(question).startswith("what color is it?\nAnswer the question using")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("teal", "teal"),
        (" Teal.\n", "teal"),
        ("a circle", "circle"),
        ("teal circle", None),
        ("grey", None),
        ("2", None),
        ("", None),
    ],
)
def test_only_the_thirteen_answers_are_read(text: str, parsed: str | None) -> None:
    judgement = EasyVQA().judge(text, Target(("teal",)))
    assert judgement == Judgement(10 if parsed == "teal" else 0, parsed)


@given(text=st.text())
def test_any_text_is_judged(text: str) -> None:
    assert EasyVQA().judge(text, Target(("teal",))).parsed in (None, *EASY)


COLOURS = ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"]
EASY = [*COLOURS, "circle", "rectangle", "triangle", "yes", "no"]


def test_a_row_of_the_hub(release) -> None:
    row = {"id": "test:0", "question": ROWS[0][0], "answer": "teal", "image": None}
    asked = EasyVQA().read(release)[0]
    assert EasyVQA().from_hub(row).target == asked.target


@pytest.mark.parametrize("rows", [[["a", "b"]], [["what?", "purple", 0]], {"a": 1}])
def test_other_files_are_refused(release, rows) -> None:
    (release / "test" / "questions.json").write_text(json.dumps(rows))
    with pytest.raises(InputError):
        EasyVQA().read(release)


def test_the_release(test_data) -> None:
    """Sizes and the blind baselines that the note on the data gives."""
    task = EasyVQA()
    questions = task.read(test_data / "easy_vqa")
    assert len(questions) == 7764
    assert all(q.image.is_file() for q in questions[:: 7764 // 20])
    targets = [q.target for q in questions]
    scores = task.scores(["Yes."] * 7764, targets)
    assert round(scores["overall"], 2) == 37.42
    assert (scores["kind/shape"], scores["kind/colour"]) == (0, 0)
    best: dict[str, dict[str, int]] = {}
    for q in task.read(test_data / "easy_vqa", "train"):
        seen = best.setdefault(q.row["question"], {})
        seen[q.target.answers[0]] = seen.get(q.target.answers[0], 0) + 1
    blind = [max(best[q.row["question"]].items(), key=lambda x: x[1])[0] for q in questions]
    assert round(task.scores(blind, targets)["overall"], 2) == 66.98

"""MMBench: circular 67.69, and readers of its table."""

import base64
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Target
from qvlm_lightning.tasks.mmbench import MMBench


@pytest.fixture(scope="module")
def folder(test_data: Path) -> Path:
    return test_data / "mmbench_dev"


def test_circular_67_69(folder: Path) -> None:
    task = MMBench()
    questions = task.read(folder)
    rows = map(json.loads, (folder / "llava15_13b_rows.jsonl").read_text().splitlines())
    answers = {str(row["index"]): row["prediction"] for row in rows}
    scores = task.scores([answers[q.id] for q in questions], [q.target for q in questions])
    golden = json.loads((folder / "golden.json").read_text())
    assert f"{scores['overall']:.2f}" == "67.69"  # published as 67.7
    assert scores["overall"] == golden["circular_acc"]
    assert scores["first_pass"] == golden["vanilla_first_pass"]
    assert f"{scores['row']:.2f}" == "76.45"  # evaluation.md 1.8
    assert scores["unparsed"] == 0
    without = [None if q.id == "241" else answers[q.id] for q in questions]
    missing = task.scores(without, [q.target for q in questions])
    assert missing["overall"] == pytest.approx(100 * 795 / 1176)  # 241 was right before


TABLE = (
    ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image"),
    ("7", "Which?", "Look.", "fox", "sky", "", "", "A", "color", "perception", "IMAGE"),
    ("1000007", "Which?", "Look.", "sky", "fox", "nan", "", "B", "color", "perception", "7"),
    ("8", "What?", "nan", "one", "two", "three", "", "C", "count", "perception", "IMAGE"),
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two questions, one of them with a rotation, in the columns of the release."""
    buffer = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    lines = ["\t".join(row).replace("IMAGE", picture) for row in TABLE]
    file = tmp_path / "mmbench_dev_20230712.tsv"
    file.write_text("\n".join(lines))
    return file


def test_the_table_of_the_release(table: Path) -> None:
    first, rotated, other = MMBench().read(table.parent)
    assert [q.id for q in (first, rotated, other)] == ["7", "1000007", "8"]
    assert [q.target.cluster for q in (first, rotated, other)] == ["7", "7", "8"]
    assert first.target.groups == ("category/color", "l2/perception")
    assert rotated.target.choices == ("sky", "fox")
    assert first.image is rotated.image is not None
    assert other.image.open().size == (32, 32)
    assert MMBench().text(first) == (
        "Look.\nWhich?\nA. fox\nB. sky\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert MMBench().text(other).startswith("What?\nA. one\nB. two\nC. three\nAnswer")


def test_scores_per_category_are_circular(table: Path) -> None:
    task = MMBench()
    targets = [q.target for q in task.read(table)]
    scores = task.scores(["A", "A", "C"], targets)
    assert scores["overall"] == scores["l2/perception"] == 50
    assert (scores["category/color"], scores["category/count"]) == (0, 100)
    assert (scores["first_pass"], scores["row"]) == (100, pytest.approx(200 / 3))


def test_rows_of_the_hub() -> None:
    row = {"index": 1_000_007, "question": "Which?", "hint": "nan", "answer": "B", "image": None}
    row |= {"A": "sky", "B": "fox", "C": "nan", "D": "nan"}
    question = MMBench().from_hub(row | {"category": "color", "L2-category": "perception"})
    assert question.id == "1000007"
    assert question.target == Target(
        answers=("B",),
        choices=("sky", "fox"),
        groups=("category/color", "l2/perception"),
        cluster="7",
        extra={"rotation": 1},
    )


@given(st.text(), st.sampled_from(MMBench.modes), st.integers(2, 4))
def test_any_text_is_judged(text: str, mode: str, count: int) -> None:
    judgement = MMBench(mode).judge(text, Target(("B",), tuple("wxyz"[:count])))
    assert (judgement.points == 10) is (judgement.parsed == "B")
    assert judgement.points in (0, 10)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"index": 1, "question": "?"}', "no 'answer'"),
        ("a.jsonl", '{"index": "x", "question": "?", "answer": "A"}', "is no integer"),
        ("a.jsonl", "", "holds no questions"),
        ("a.tsv", "index\tquestion\n1\t?", "no 'answer'"),
        ("a.tsv", "index\tquestion\tanswer\timage\n1\t?\tA\t" + "A" * 65, "not in base64"),
        (
            "a.jsonl",
            '{"index": 1, "question": "?", "answer": "A", "options": ["x"]}',
            "is of another kind",
        ),
        ("a.txt", "", "holds 0 files"),
    ],
)
def test_faults_are_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        MMBench().read(tmp_path)


def test_several_files_are_told_apart_by_the_split(tmp_path: Path) -> None:
    row = {"index": 1, "question": "?", "answer": "A", "options": {"A": "x", "B": "y"}}
    for name in ("mmbench_dev.jsonl", "mmbench_test.jsonl"):
        (tmp_path / name).write_text(json.dumps(row))
    assert len(MMBench().read(tmp_path)) == 1
    (tmp_path / "mmbench_dev_cn.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="holds 2 files"):
        MMBench().read(tmp_path)

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Judgement, Target
from qvlm_lightning.tasks.gqa import GQA

# (answer, structural type, text, right by hand under: official, llava, lmms)
BY_HAND: list[tuple[str, str, str, str]] = [
    ("yes", "verify", "yes", "1 1 1"),
    ("yes", "verify", "Yes", "0 1 1"),  # official: to the letter
    ("no", "verify", "No.", "0 1 1"),
    ("no", "verify", "no...", "0 1 1"),
    ("no", "verify", "no. ", "0 0 0"),  # nobody strips the ends
    ("yes", "logical", "yes!", "0 0 1"),  # only lmms-eval drops all punctuation
    ("yes", "logical", "yes, it is", "0 0 0"),
    ("no", "logical", "", "0 0 0"),
    ("left", "choose", "left", "1 1 1"),
    ("left", "choose", "the left", "0 0 0"),  # articles stay
    ("left", "choose", " left", "0 0 0"),
    ("right", "compare", "left", "0 0 0"),
    ("red", "query", "red", "1 1 1"),
    ("red", "query", "RED", "0 1 1"),
    ("red", "query", "'red'", "0 0 1"),
    ("t-shirt", "query", "t-shirt", "1 1 1"),
    ("t-shirt", "query", "tshirt", "0 0 1"),  # on both sides
    ("t-shirt", "query", "t shirt", "0 0 0"),
    ("parking meter", "query", "Parking meter.", "0 1 1"),
    ("two", "query", "2", "0 0 0"),  # numbers are not normalised
    ("wii remote", "query", "wii  remote", "0 0 0"),
    ("mcdonald's", "query", "mcdonalds", "0 0 1"),
    ("cat", "query", ".", "0 0 0"),
    ("bookcase", "query", "bookcase", "1 1 1"),
]
MODES = ("official", "llava", "lmms")


def entry(answer: str, structural: str, balanced: bool = True) -> dict:
    return {
        "question": "Which one?",
        "answer": answer,
        "fullAnswer": "",
        "imageId": "n42",
        "isBalanced": balanced,
        "groups": {"global": None, "local": "x"},
        "types": {"structural": structural, "semantic": "rel", "detailed": "x"},
    }


@pytest.fixture
def release(tmp_path) -> Path:
    rows = {f"20{i:03}": entry(answer, kind) for i, (answer, kind, *_) in enumerate(BY_HAND)}
    rows["unbalanced"] = entry("yes", "verify", balanced=False)
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(rows))
    return tmp_path


def test_by_hand(release) -> None:
    questions = GQA().read(release)
    assert len(questions) == len(BY_HAND) == 24  # the unbalanced one does not count
    rows = list(zip(*(right.split() for *_, right in BY_HAND), strict=True))
    for mode, right in zip(MODES, rows, strict=True):
        task = GQA(mode)
        judged = [
            task.judge(text, q.target)
            for (_, _, text, _), q in zip(BY_HAND, questions, strict=True)
        ]
        assert [str(j.points // 10) for j in judged] == list(right), mode


# By hand from the table: right of 24 overall, of 12 binary and of 12 open questions.
@pytest.mark.parametrize(
    ("mode", "overall", "binary", "open_"),
    [("official", 5, 2, 3), ("llava", 10, 5, 5), ("lmms", 14, 6, 8)],
)
def test_groups_by_hand(release, mode: str, overall: int, binary: int, open_: int) -> None:
    questions = GQA().read(release)
    texts = [text for _, _, text, _ in BY_HAND]
    scores = GQA(mode).scores(texts, [q.target for q in questions])
    assert scores["overall"] == pytest.approx(100 * overall / 24)
    assert scores["kind/binary"] == pytest.approx(100 * binary / 12)
    assert scores["kind/open"] == pytest.approx(100 * open_ / 12)
    assert scores["structural/query"] == scores["kind/open"]
    assert scores["semantic/rel"] == scores["overall"]


def test_layouts(release, tmp_path) -> None:
    file = release / "testdev_balanced_questions.json"
    (release / "images").mkdir()
    for path in (release, file):
        question = GQA().read(path)[0]
        assert question.id == "20000"
        assert question.image == release / "images" / "n42.jpg"
    (release / "questions1.2").mkdir()
    moved = file.rename(release / "questions1.2" / file.name)
    for path in (release, moved):
        assert GQA().read(path)[0].image.resolve() == release / "images" / "n42.jpg"


def test_splits_have_their_files(release) -> None:
    rows = {"1": entry("no", "verify"), "2": entry("no", "verify", balanced=False)}
    (release / "val_all_questions.json").write_text(json.dumps(rows))
    assert [q.id for q in GQA().read(release, "val")] == ["1"]
    with pytest.raises(InputError, match=r"has none of train_balanced_questions\.json"):
        GQA().read(release, "train")


def test_prompt(release) -> None:
    question = GQA().read(release)[0]
    assert GQA().text(question) == (
        "Which one?\nAnswer the question using a single word or phrase."
    )


def test_a_row_of_the_hub(release) -> None:
    row = entry("yes", "verify") | {"id": "20000"}  # images lie in a configuration of their own
    assert GQA().from_hub(row) == GQA().read(release)[0]


def test_another_file_is_refused(tmp_path) -> None:
    (tmp_path / "testdev_balanced_questions.json").write_text('{"1": {"question": "x"}}')
    with pytest.raises(InputError, match="of another kind"):
        GQA().read(tmp_path)


@pytest.mark.parametrize("mode", MODES)
@given(text=st.text())
def test_any_text_is_judged(mode: str, text: str) -> None:
    judgement = GQA(mode).judge(text, Target(("it's",)))
    assert judgement.points in (0, 10)
    assert (judgement.parsed is None) <= (judgement.points == 0)


def test_no_expected_answer_no_points() -> None:
    assert GQA().judge("yes", Target(())) == Judgement(0, None)

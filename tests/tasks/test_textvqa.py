import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Target
from qvlm_lightning.tasks.textvqa import TextVQA

# (text, the ten annotators as answer -> how many, points by hand). EvalAI's processor makes both
# sides comparable; then 0, 3, 6, 9, 10 tenths for 0, 1, 2, 3, 4 and more who agree.
BY_HAND: list[tuple[str, dict[str, int], int]] = [
    ("nokia", {"nokia": 10}, 10),
    ("Nokia.", {"nokia": 10}, 10),  # case and the last stop
    ("NOKIA", {"Nokia": 4, "phone": 6}, 10),  # four are enough
    ("nokia", {"nokia": 3, "phone": 7}, 9),
    ("nokia", {"nokia": 2, "phone": 8}, 6),
    ("nokia", {"nokia": 1, "phone": 9}, 3),
    ("samsung", {"nokia": 10}, 0),
    ("", {"nokia": 10}, 0),
    ("nokia phone", {"nokia": 5, "phone": 5}, 0),  # no partial match
    ("the end", {"end": 1, "The End": 1, "an end": 1, "finish": 7}, 9),  # articles go
    ("two", {"2": 2, "Two": 2, "3": 6}, 10),  # number words are digits
    ("eleven", {"11": 10}, 0),  # only up to ten
    ("1,000", {"1000": 10}, 10),  # commas go
    ("12:30", {"12:30": 2, "1230": 8}, 6),  # the colon stays
    ("3.50", {"3.50": 1, "350": 9}, 3),  # and so does the point in a number
    ("coca-cola", {"coca cola": 10}, 10),  # a hyphen inside becomes a space
    ("coca - cola", {"coca cola": 5, "cocacola": 5}, 10),  # beside spaces it goes
    ("joe's", {"joe 's": 3, "joes": 7}, 9),  # 's is a word of its own
    ("dont walk", {"don't walk": 2, "walk": 8}, 6),  # the apostrophe is put in
    ("why?", {"why": 10}, 10),
    ("exit\n", {"exit": 1, "EXIT": 1, "exit!": 1, "exits": 7}, 9),
    ('"stop"', {"stop": 10}, 10),
    ("none", {"0": 1, "nothing": 9}, 3),
    ("unanswerable", {"unanswerable": 10}, 10),
]


def annotation(number: int, answers: dict[str, int]) -> dict:
    return {
        "question_id": number,
        "image_id": f"image{number}",
        "question": "what brand is this?",
        "answers": [answer for answer, times in answers.items() for _ in range(times)],
        "image_classes": ["Phone"],
        "set_name": "val",
    }


@pytest.fixture
def release(tmp_path) -> Path:
    rows = [annotation(i, answers) for i, (_, answers, _) in enumerate(BY_HAND)]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": rows}))
    return tmp_path


def test_by_hand(release) -> None:
    task = TextVQA()
    questions = task.read(release)
    judged = [
        task.judge(text, q.target) for (text, _, _), q in zip(BY_HAND, questions, strict=True)
    ]
    assert [j.points for j in judged] == [points for _, _, points in BY_HAND]
    scores = task.scores([text for text, _, _ in BY_HAND], [q.target for q in questions])
    # the points above add up to 10 x 10 + 9 x 4 + 6 x 3 + 3 x 3, of 24 questions
    assert scores == {"overall": pytest.approx(1630 / 24), "unparsed": 1}
    assert sum(points for _, _, points in BY_HAND) == 163


def test_ids_and_images(release) -> None:
    (release / "train_images").mkdir()
    question = TextVQA().read(release / "TextVQA_0.5.1_val.json")[3]
    assert question.id == "3"
    assert question.image == release / "train_images" / "image3.jpg"


def test_prompts(release) -> None:
    plain = TextVQA(prompt="plain")
    (question, *_) = plain.read(release)
    short = "Answer the question using a single word or phrase."
    assert plain.text(question) == f"What brand is this?\n{short}"
    with pytest.raises(InputError, match=r"TextVQA_Rosetta_OCR_v0\.2_val\.json"):
        TextVQA().text(question)

    ocr = [{"image_id": "image0", "ocr_tokens": ["NOKIA", "5800"]}]
    (release / "TextVQA_Rosetta_OCR_v0.2_val.json").write_text(json.dumps({"data": ocr}))
    first, second, *_ = TextVQA().read(release)
    assert TextVQA().text(first) == (
        f"what brand is this?\nReference OCR token: NOKIA, 5800\n{short}"
    )
    with pytest.raises(InputError, match="no OCR tokens"):
        TextVQA().text(second)


def test_no_words_read_is_an_empty_list() -> None:
    row = {"question": "what?", "ocr_tokens": []}
    assert TextVQA.prompts["ocr"](row).split("\n")[1] == "Reference OCR token: "


def test_the_train_split_has_its_own_files(release) -> None:
    rows = {"data": [annotation(7, {"x": 10}) | {"image_id": "t"}]}
    (release / "TextVQA_0.5.1_train.json").write_text(json.dumps(rows))
    ocr = {"data": [{"image_id": "t", "ocr_tokens": ["X"]}]}
    (release / "TextVQA_Rosetta_OCR_v0.2_train.json").write_text(json.dumps(ocr))
    for path, split in ((release, "train"), (release / "TextVQA_0.5.1_train.json", None)):
        (question,) = TextVQA().read(path, split)
        assert (question.id, question.row["ocr_tokens"]) == ("7", ["X"])


def test_a_row_of_the_hub(release) -> None:
    row = annotation(0, {"nokia": 10}) | {"image": None, "ocr_tokens": ["NOKIA"]}
    question = TextVQA().from_hub(row)
    assert question.target == Target(("nokia",) * 10)
    assert "NOKIA" in TextVQA().text(question)


def test_ten_answers_are_needed(tmp_path) -> None:
    path = tmp_path / "TextVQA_0.5.1_val.json"
    path.write_text(json.dumps({"data": [annotation(5, {"x": 9})]}))
    with pytest.raises(InputError, match="question 5 has 9 answers; it takes those of 10"):
        TextVQA().read(tmp_path)


@given(text=st.text())
def test_any_text_is_judged(text: str) -> None:
    judgement = TextVQA().judge(text, Target(("cat",) * 9 + ("",)))
    assert judgement.points in (0, 3, 10)
    assert (judgement.parsed is None) <= (judgement.points == 0)

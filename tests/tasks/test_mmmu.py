"""MMMU: 330 of 900 from the parsed-answer file, subject by subject; raw text without guesses."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Target
from qvlm_lightning.tasks.mmmu import MMMU


@pytest.fixture(scope="module")
def folder(test_data: Path) -> Path:
    return test_data / "mmmu_val"


@pytest.fixture(scope="module")
def golden(folder: Path) -> dict:
    return json.loads((folder / "golden_llava1.5_13b.json").read_text())


@pytest.fixture(scope="module")
def responses(folder: Path) -> dict[str, str]:
    held = json.loads((folder / "llava1.5_13b_outputs_by_subject.json").read_text())
    return {row["id"]: row["response"] for rows in held.values() for row in rows}


def test_330_of_900(folder: Path, golden: dict) -> None:
    task = MMMU("parsed")
    questions = task.read(folder / "answer_dict_val.json")
    parsed = json.loads((folder / "llava1.5_13b_total_val_output.json").read_text())
    texts, targets = [parsed[q.id] for q in questions], [q.target for q in questions]
    metric = task.metric(targets)
    metric.update(task.judged(texts, targets), [t.groups for t in targets])
    counts = metric.counts()
    assert counts["overall"] == (3300, 900)  # tenths of points
    for name, entry in golden["eval_only"]["per_subject"].items():
        assert counts[f"subject/{name}"] == (10 * entry["correct"], entry["n"])
    scores = task.scores(texts, targets)
    domains = golden["eval_only"]["per_domain"]
    assert {k: round(scores[f"domain/{k}"] / 100, 4) for k in domains} == domains


def test_raw_text_is_parsed_as_officially_but_never_guessed(folder, golden, responses) -> None:
    task = MMMU()
    questions = task.read(folder)
    expected = golden["parse_multi_choice_deterministic"]
    guessed = golden["parse_random_fallback_ids"]
    closed = [q for q in questions if not q.target.extra["open"]]
    parsed = {q.id: task.judge(responses[q.id], q.target).parsed for q in closed}
    assert {name: letter for name, letter in parsed.items() if letter} == expected
    assert [name for name, letter in parsed.items() if letter is None] == guessed
    scores = task.scores([responses[q.id] for q in questions], [q.target for q in questions])
    assert scores["overall"] == pytest.approx(100 * 329 / 900)  # one of two guesses was lucky
    assert scores["unparsed"] == 2


def test_options_are_needed_to_parse(folder: Path) -> None:
    with pytest.raises(InputError, match="no options of 'validation_Accounting_1'"):
        MMMU().read(folder / "answer_dict_val.json")
    outputs = folder / "llava1.5_13b_outputs_by_subject.json"
    assert [q.target for q in MMMU().read(outputs)] == [q.target for q in MMMU().read(folder)]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_validation_split_has_three_names(name: str) -> None:
    assert MMMU().split(name) == "validation"


def test_no_answers_of_another_split(folder: Path) -> None:
    with pytest.raises(InputError, match="no question of split dev"):
        MMMU().read(folder, "dev")


HUB = {
    "id": "validation_Art_Theory_3",
    "question": "What is <image 1>?",
    "options": "['a fox', 'the sky']",
    "answer": "B",
    "question_type": "multiple-choice",
    "image_1": None,
}


def test_rows_of_the_hub() -> None:
    question = MMMU().from_hub(HUB)
    assert question.id == "validation_Art_Theory_3"
    assert question.target == Target(
        answers=("B",),
        choices=("a fox", "the sky"),
        groups=("domain/Art and Design", "subject/Art_Theory", "type/multiple-choice"),
        extra={"open": False},
    )
    assert MMMU().text(question) == (
        "What is <image 1>?\nA. a fox\nB. the sky\n\n"
        "Answer with the option's letter from the given choices directly."
    )


@pytest.mark.parametrize(
    ("answer", "answers"),
    [
        ("3.5", ("3.5",)),
        ("['24/7', '3.429']", ("24/7", "3.429")),
        ("[1, 2]", ("[1, 2]",)),  # a mathematical interval, not a list of answers
        ("[0, 1)", ("[0, 1)",)),
    ],
)
def test_open_answers_of_the_hub(answer: str, answers: tuple[str, ...]) -> None:
    row = HUB | {"answer": answer, "options": "[]", "question_type": "open"}
    question = MMMU().from_hub(row)
    assert question.target.answers == answers
    assert MMMU().text(question) == (
        "What is <image 1>?\n\nAnswer the question using a single word or phrase."
    )


OPEN = Target(("24/7", "3.429"), extra={"open": True})
CLOSED = Target(("B",), ("a fox", "the sky"), extra={"open": False})


@pytest.mark.parametrize(
    ("mode", "text", "target", "points"),
    [
        ("official", "The answer is (B).", CLOSED, 10),
        ("official", "blue", CLOSED, 0),
        ("parsed", "B", CLOSED, 10),
        ("parsed", "(B)", CLOSED, 0),
        ("official", "It is 3.43", OPEN, 10),
        ("parsed", "3.43", OPEN, 10),
        ("official", " ", OPEN, 0),
    ],
)
def test_judging(mode: str, text: str, target: Target, points: int) -> None:
    assert MMMU(mode).judge(text, target).points == points


@given(st.text(), st.sampled_from(MMMU.modes), st.sampled_from([OPEN, CLOSED]))
def test_any_text_is_judged(text: str, mode: str, target: Target) -> None:
    judgement = MMMU(mode).judge(text, target)
    assert judgement.points in (0, 10)
    assert judgement.parsed is not None or judgement.points == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is of another kind"),
        ('{"validation_Art_1": {}}', "is of another kind"),
        ("{}", "holds no question"),
    ],
)
def test_faults_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "answer_dict_val.json").write_text(text)
    with pytest.raises(InputError, match=message):
        MMMU("parsed").read(tmp_path)

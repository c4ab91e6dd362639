import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Target
from qvlm_lightning.tasks.vizwiz import VizWiz

GOLDEN = [
    "Unanswerable_capital_or_shifted",
    "constant_unanswerable",
    "majority",
    "messy_majority",
    "second_annotator",
]


def row(number: int, answers: list[str], answerable: int) -> dict:
    return {
        "image": f"VizWiz_val_{number:08}.jpg",
        "question": "What is this Box?",
        "answer_type": "other" if answerable else "unanswerable",
        "answerable": answerable,
        "answers": [{"answer": a, "answer_confidence": "yes"} for a in answers],
    }


ROWS = [row(0, ["can"] * 3 + ["Can"] * 7, 1), row(1, ["unanswerable"] * 10, 0)]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("annotations.json", "."),
        ("val.json", "."),
        ("Annotations/val.json", "."),
        ("VizWiz_VQA_v2_val.json", "VizWiz_VQA_v2_val.json"),
    ],
)
def test_layouts(tmp_path, name: str, path: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(ROWS))
    first, second = VizWiz().read(tmp_path / path)
    assert first.id == "VizWiz_val_00000000.jpg"
    assert first.target.groups == ("answer_type/other", "answerable/yes")
    assert second.target.groups == ("answer_type/unanswerable", "answerable/no")
    assert first.image is None
    (tmp_path / name).parent.joinpath("val").mkdir()
    (first, _) = VizWiz().read(tmp_path / path)
    assert first.image == (tmp_path / name).parent / "val" / first.id


def test_an_unnamed_file_is_the_validation_split(tmp_path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(ROWS))
    with pytest.raises(InputError, match=r"has none of Annotations/train\.json, train\.json"):
        VizWiz().read(tmp_path, "train")


def test_prompt() -> None:
    question = VizWiz().from_hub(
        {"question_id": "VizWiz_val_00000003", "question": "what is this Box?", "answers": None}
    )
    assert VizWiz().text(question) == (
        "What is this box?\n"
        "When the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )


def test_prompt_is_llavas(test_data) -> None:
    """All 6,000 prompts of LLaVA's file are the ones that this function writes."""
    path = test_data / "answer_normaliser" / "llava15_13b_vizwiz_test_pairs.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["prompt"]
        assert VizWiz.prompts["unanswerable"]({"question": prompt.split("\n")[0]}) == prompt


def test_a_row_of_the_hub_has_no_answerability() -> None:
    question = VizWiz().from_hub(
        {
            "question_id": "VizWiz_val_00000003",
            "question": "What is this?",
            "answers": ["can"] * 10,
            "category": "other",
            "image": None,
        }
    )
    assert question.id == "VizWiz_val_00000003.jpg"
    assert question.target == Target(("can",) * 10, groups=("answer_type/other",))
    scores = VizWiz().scores(["can"], [question.target])
    assert scores["overall"] == 100
    assert scores["answerability_f1"] != scores["answerability_f1"]


@pytest.mark.parametrize("mode", VizWiz.modes)
@given(text=st.text())
def test_any_text_is_judged(mode: str, text: str) -> None:
    judgement = VizWiz(mode).judge(text, Target(("can",) * 9 + ("unanswerable",)))
    assert judgement.points in (0, 3, 10)
    assert (judgement.parsed is None) <= (judgement.points == 0)


def test_no_answer_is_not_unanswerable() -> None:
    targets = [q.target for q in map(question, ROWS)]
    scores = VizWiz().scores([None, None], targets)
    assert (scores["overall"], scores["answerability_f1"], scores["unparsed"]) == (0, 0, 2)


def question(annotation: dict):
    return VizWiz().from_hub(annotation | {"question_id": annotation["image"]})


@pytest.fixture(scope="module")
def validation(test_data):
    folder = test_data / "vizwiz_val2019"
    return folder / "golden", VizWiz().read(folder)


@pytest.mark.parametrize("name", GOLDEN)
def test_official_scores_digit_for_digit(validation, name: str) -> None:
    folder, questions = validation
    golden = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    answers = {p["image"]: p["answer"] for p in golden["predictions"]}
    texts, targets = [answers[q.id] for q in questions], [q.target for q in questions]
    task = VizWiz("official")
    judged = task.judged(texts, targets)
    assert {q.id: j.points * 10.0 for q, j in zip(questions, judged, strict=True)} == (
        golden["evalQA"]
    )
    scores = {name: round(value, 2) for name, value in task.scores(texts, targets).items()}
    assert scores["overall"] == golden["accuracy"]["overall"]
    assert scores["answerability_ap"] == golden["unanswerability"]["average_precision"]
    assert scores["answerability_f1"] == golden["unanswerability"]["f1_score"]
    kinds = golden["accuracy"]["perAnswerType"]
    assert {kind: scores[f"answer_type/{kind}"] for kind in kinds} == kinds


def test_confidences_digit_for_digit(validation) -> None:
    folder, questions = validation
    path = folder / "answerability_confidence.json"
    golden = json.loads(path.read_text(encoding="utf-8"))
    given = golden["answerable_confidence"]
    texts, targets = ["cat"] * len(questions), [q.target for q in questions]
    scores = VizWiz().scores(texts, targets, [given[q.id] for q in questions])
    assert round(scores["answerability_ap"], 2) == golden["average_precision"]
    assert round(scores["answerability_f1"], 2) == golden["f1"]


def test_lmms_normalises_annotators_too(validation) -> None:
    folder, questions = validation
    golden = json.loads((folder / "majority.json").read_text(encoding="utf-8"))
    answers = {p["image"]: p["answer"] for p in golden["predictions"]}
    texts, targets = [answers[q.id] for q in questions], [q.target for q in questions]
    gain = VizWiz("lmms").scores(texts, targets)["overall"] - golden["accuracy"]["overall"]
    assert 0.1 < gain < 0.3  # about a tenth of a point, says the note on the data


def test_a_missing_answer_is_wrong_about_answerability_too() -> None:
    targets = [VizWiz().from_hub(x | {"question_id": x["image"]}).target for x in ROWS]
    answers, nothing = ["can", "unanswerable"], [None, None]
    figures = ("answerability_ap", "answerability_f1")
    found = [
        VizWiz().scores(texts, targets) for texts in (answers, [None, "unanswerable"], nothing)
    ]
    assert [[round(x[name], 2) for name in figures] for x in found] == [
        [100, 100],
        [50, 66.67],  # predicted unanswerable like the other
        [50, 0],  # ranks first what can be answered
    ]


def test_a_confidence_is_a_probability() -> None:
    with pytest.raises(InputError, match=r"confidence of vizwiz is 87\.5; allowed are 0 to 1"):
        VizWiz().scores(["can"], [Target(("can",) * 10)], [87.5])

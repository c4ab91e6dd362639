import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.normalise import evalai_answer, lmms_answer, official_answer
from qvlm_lightning.metrics.target import Target
from qvlm_lightning.tasks.vqav2 import VQAv2

OFFICIAL = "v2_mscoco_val2014_annotations.json", "v2_OpenEnded_mscoco_val2014_questions.json"


def annotation(number: int, answers: list[str], kind: str = "other") -> dict:
    return {
        "question_id": number,
        "image_id": 42,
        "answer_type": kind,
        "question_type": "what is",
        "multiple_choice_answer": answers[0],
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1}
            for i, answer in enumerate(answers)
        ],
    }


def write(folder: Path, annotations: str, questions: str, rows: list[dict] | None = None) -> None:
    rows = rows or [annotation(420, ["cat"] * 9 + ["dog"]), annotation(421, ["2"] * 10, "number")]
    asked = [{"question_id": r["question_id"], "question": f"why {i}?"} for i, r in enumerate(rows)]
    for name, content in ((annotations, {"annotations": rows}), (questions, {"questions": asked})):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content)
        if name.endswith(".gz"):
            (folder / name).write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("names", "path"),
    [
        (OFFICIAL, "."),
        (OFFICIAL, OFFICIAL[0]),
        (OFFICIAL, OFFICIAL[1]),
        ((f"Annotations/{OFFICIAL[0]}", f"Questions/{OFFICIAL[1]}"), "."),
        (
            (f"Annotations/{OFFICIAL[0]}", f"Questions/{OFFICIAL[1]}"),
            f"Questions/{OFFICIAL[1]}",
        ),
        (("val_annotations.json", "val_questions.json"), "."),
        (("valid_annotations.json.gz", "valid_questions.json.gz"), "."),
        (("valid_annotations.json.gz", "valid_questions.json.gz"), "valid_questions.json.gz"),
    ],
)
def test_layouts(tmp_path, names: tuple[str, str], path: str) -> None:
    write(tmp_path, *names)
    task = VQAv2()
    first, second = task.read(tmp_path / path)
    assert (first.id, second.id) == ("420", "421")
    assert first.target.answers == ("cat",) * 9 + ("dog",)
    assert second.target.groups == ("answer_type/number", "question_type/what is")
    assert first.image is None
    assert task.text(first) == "why 0?\nAnswer the question using a single word or phrase."


def test_splits_have_their_files(tmp_path) -> None:
    write(tmp_path, *OFFICIAL)
    write(tmp_path, "train_annotations.json", "train_questions.json", [annotation(7, ["a"] * 10)])
    assert [q.id for q in VQAv2().read(tmp_path, "train")] == ["7"]
    assert len(VQAv2().read(tmp_path, "validation")) == 2
    with pytest.raises(InputError, match="split of vqav2 is 'test'; allowed are val, train"):
        VQAv2().read(tmp_path, "test")


@pytest.mark.parametrize("folder", ["val2014", "images", "images/val2014"])
def test_images_have_cocos_names(tmp_path, folder: str) -> None:
    write(tmp_path, *OFFICIAL)
    (tmp_path / folder).mkdir(parents=True)
    (question, _) = VQAv2().read(tmp_path)
    assert question.image == tmp_path / folder / "COCO_val2014_000000000042.jpg"


def test_annotations_alone_can_be_scored_but_not_asked(tmp_path) -> None:
    write(tmp_path, *OFFICIAL)
    (tmp_path / OFFICIAL[1]).unlink()
    task = VQAv2()
    questions = task.read(tmp_path)
    assert task.scores(["cat", "2"], [q.target for q in questions])["overall"] == 100
    with pytest.raises(InputError, match="can only be scored against"):
        task.text(questions[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"annotations": [{"question_id": 1}]}', "of another kind"),
        ("[]", "of another kind"),
        ('{"questions": []}', "no 'annotations'"),
        ("not json", "is not JSON"),
        (json.dumps({"annotations": [annotation(5, ["a"] * 9)]}), "question 5 has 9 answers"),
    ],
)
def test_other_files_are_refused(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        VQAv2().read(path)


def test_an_empty_folder_tells_what_belongs_there(tmp_path) -> None:
    with pytest.raises(InputError, match=r"v2_mscoco_val2014_annotations\.json"):
        VQAv2().read(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        VQAv2().read(tmp_path / "nowhere")


def test_a_row_of_the_hub(tmp_path) -> None:
    write(tmp_path, *OFFICIAL)
    (question, _) = VQAv2().read(tmp_path)
    row = annotation(420, ["cat"] * 9 + ["dog"]) | {"question": "why 0?", "image": None}
    assert VQAv2().from_hub(row) == question
    withheld = row | {"answers": None, "answer_type": None, "question_type": None}
    assert VQAv2().from_hub(withheld).target == Target(())


UNANIMOUS, SPLIT = Target(("yes",) * 10), Target(("yes",) * 8 + ("no", "Yes."))


@pytest.mark.parametrize(
    ("mode", "unanimous", "split"), [("official", 0, 10), ("evalai", 10, 10), ("lmms", 10, 10)]
)
def test_modes(mode: str, unanimous: int, split: int) -> None:
    task = VQAv2(mode)
    assert (task.judge("Yes.", UNANIMOUS).points, task.judge("Yes.", SPLIT).points) == (
        unanimous,
        split,
    )


@pytest.mark.parametrize("mode", VQAv2.modes)
@given(text=st.text())
def test_any_text_is_judged(mode: str, text: str) -> None:
    judgement = VQAv2(mode).judge(text, SPLIT)
    assert judgement.points in (0, 3, 6, 9, 10)
    assert (judgement.parsed is None) <= (judgement.points == 0)


GOLDEN = ["constant_yes", "first_annotator", "majority", "messy_majority", "shifted"]


@pytest.fixture(scope="module")
def validation(test_data):
    """The 8,977 questions, and a function that reads a golden file's predictions by id."""
    folder = test_data / "vqav2_subset"
    questions = VQAv2().read(folder, "valid")

    def golden(name: str) -> tuple[dict, list[str]]:
        content = json.loads((folder / "golden" / f"valid_{name}.json").read_text("utf-8"))
        texts = {str(p["question_id"]): p["answer"] for p in content["predictions"]}
        return content, [texts[q.id] for q in questions]

    return questions, golden


@pytest.mark.parametrize("name", GOLDEN)
def test_official_scores_digit_for_digit(validation, name: str) -> None:
    questions, golden = validation
    content, texts = golden(name)
    task = VQAv2("official")
    judged = [task.judge(x, q.target) for x, q in zip(texts, questions, strict=True)]
    per_question = {q.id: j.points * 10.0 for q, j in zip(questions, judged, strict=True)}
    assert per_question == content["evalQA"]

    scores = task.scores(texts, [q.target for q in questions])
    expected = {"overall": content["accuracy"]["overall"]}
    for group, part in (("answer_type", "perAnswerType"), ("question_type", "perQuestionType")):
        expected |= {f"{group}/{k}": v for k, v in content["accuracy"][part].items()}
    assert {k: round(v, 2) for k, v in scores.items() if k != "unparsed"} == expected


def test_the_modes_are_far_apart_on_untidy_answers(validation) -> None:
    """Case, articles, full stops and hyphens cost 20 points where annotators are unanimous."""
    questions, golden = validation
    _, texts = golden("messy_majority")
    targets = [q.target for q in questions]
    overall = {mode: VQAv2(mode).scores(texts, targets)["overall"] for mode in VQAv2.modes}
    assert overall["evalai"] - overall["official"] > 19
    assert overall["lmms"] - overall["official"] > 19


@pytest.mark.slow
def test_the_whole_validation_set_is_scored_within_a_minute(validation) -> None:
    """214,354 questions (the size of VQA v2's validation set), the subset over and over.

    The caches of the normalisers are emptied for each copy: a copy costs as much as the first.
    """
    questions, golden = validation
    _, texts = golden("messy_majority")
    task, targets = VQAv2(), [q.target for q in questions]
    metric = task.metric(targets)
    copies, rest = divmod(214_354, len(questions))
    started = time.process_time()
    for size in [len(questions)] * copies + [rest]:
        for normalise in (official_answer, evalai_answer, lmms_answer):
            normalise.cache_clear()
        metric.update(task.judged(texts[:size], targets[:size]), [t.groups for t in targets[:size]])
    seconds = time.process_time() - started
    assert metric.counts()["overall"][1] == 214_354
    print(f"{seconds:.1f} s, {1000 * seconds / 214_354:.4f} s per 1,000 questions")
    assert seconds < 60

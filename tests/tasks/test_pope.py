"""POPE: golden counts, joined by key; the official reading of yes and no."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Target
from qvlm_lightning.tasks.pope import POPE, official

CATEGORIES = ("adversarial", "popular", "random")


@pytest.fixture(scope="module")
def folder(test_data: Path) -> Path:
    return test_data / "pope"


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, str]:
    """LLaVA-1.5-13B's answers by ``category:image:question``."""
    lines = (folder / "llava15_13b_answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        f"{x['category']}:{x['image']}:{x['prompt'].partition(chr(10))[0]}": x["text"] for x in rows
    }


def scored(task: POPE, questions, answers: dict[str, str]) -> dict[str, float]:
    return task.scores([answers.get(q.id) for q in questions], [q.target for q in questions])


def test_golden_figures(folder: Path, answers) -> None:
    task = POPE()
    scores = scored(task, task.read(folder, "llava_copy"), answers)
    golden = json.loads((folder / "golden_llava15_13b.json").read_text())["scores"]
    assert f"{scores['f1']:.2f}" == "85.95"  # published as 85.9
    assert scores["f1"] == pytest.approx(100 * golden["mean_f1"], abs=1e-9)
    for name in CATEGORIES:
        ours = {"accuracy": scores[f"category/{name}"]}
        for figure in ("precision", "recall", "f1", "yes_ratio"):
            ours[figure] = scores[f"category/{name}/{figure}"]
        assert ours == pytest.approx({k: 100 * golden[name][k] for k in ours}, abs=1e-9)


def test_the_order_of_lines_does_not_matter(folder: Path, answers) -> None:
    task = POPE()
    questions = task.read(folder, "llava_copy")
    shuffled = random.Random(0).sample(questions, len(questions))
    assert scored(task, shuffled, answers) == scored(task, questions, answers)


def test_by_position_the_other_copy_would_score_like_a_coin(folder: Path, answers) -> None:
    """LLaVA's random file has 2,910 lines, the official one 3,000 in another order."""
    task = POPE()
    official_order = task.read(folder / "official/coco_pope_random.json")
    in_file_order = [text for name, text in answers.items() if name.startswith("random:")]
    pairs = zip(in_file_order, official_order, strict=False)
    right = [task.judge(text, q.target).points == 10 for text, q in pairs]
    assert f"{100 * sum(right) / len(right):.2f}" == "50.17"  # evaluation.md 1.6
    by_key = [q for q in official_order if q.id in answers]
    assert len(by_key) > 0.9 * len(official_order)
    assert scored(task, by_key, answers)["overall"] > 85


def test_every_copy_is_read(folder: Path) -> None:
    assert len(POPE().read(folder)) == 9000
    assert len(POPE().read(folder, "llava_copy")) == 8910
    assert len(POPE().read(folder / "official")) == 9000
    assert len(POPE().read(folder / "official/coco_pope_random.json")) == 3000


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is none", False),
        ("There is not a cat.", False),
        ("Yes. No.", True),  # the first sentence counts
        ("I see no. Yes", False),
        ("NO", True),  # quirks of the official rule
        ("no\n", True),
        ("none", True),
        ("", True),
    ],
)
def test_the_official_reading(text: str, yes: bool) -> None:
    assert official(text) is yes


def test_exact_reads_whole_answers_only() -> None:
    task, target = POPE("exact"), Target(("no",))
    assert task.judge(" NO\n", target).points == 10
    assert task.judge("No.", target).parsed is None
    assert task.judge("", target).parsed is None


@given(st.text(), st.sampled_from(POPE.modes), st.sampled_from(["yes", "no"]))
def test_any_text_is_judged(text: str, mode: str, expected: str) -> None:
    judgement = POPE(mode).judge(text, Target((expected,)))
    assert judgement.parsed in ("yes", "no", None)
    assert (judgement.points == 10) is (judgement.parsed == expected)


def question_file(folder: Path, category: str, *rows: dict) -> Path:
    file = folder / f"coco_pope_{category}.json"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


LINE = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat?", "label": "yes"}


def test_ids_join_by_what_is_asked(tmp_path: Path) -> None:
    question_file(tmp_path, "random", LINE)
    question_file(tmp_path, "popular", LINE)
    popular, at_random = POPE().read(tmp_path)
    assert popular.id == "popular:a.jpg:Is there a cat?"
    assert at_random.id == "random:a.jpg:Is there a cat?"
    assert popular.target == Target(("yes",), groups=("category/popular",))
    asked = "Is there a cat?\nAnswer the question using a single word or phrase."
    assert POPE().text(popular) == asked


def test_images_of_coco_are_found(tmp_path: Path) -> None:
    copy = tmp_path / "official"
    copy.mkdir()
    question_file(copy, "random", LINE, LINE | {"image": "b.jpg"})
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014/a.jpg").write_bytes(b"")
    assert [q.image for q in POPE().read(tmp_path)] == [tmp_path / "val2014/a.jpg", None]


def test_rows_of_the_hub_have_the_same_ids() -> None:
    row = {"image_source": "a", "question": "Is there a cat?", "answer": "yes", "image": None}
    question = POPE().from_hub(row | {"category": "random"})
    assert question.id == "random:a.jpg:Is there a cat?"
    assert question.target == Target(("yes",), groups=("category/random",))


def test_a_missing_answer_is_wrong_even_where_silence_means_yes() -> None:
    targets = [Target(("yes",), groups=("category/random",))] * 2
    scores = POPE().scores(["Yes", None], targets)
    assert scores["overall"] == 50
    assert scores["category/random/recall"] == 50
    assert scores["unparsed"] == 1


def test_without_a_yes_there_is_an_f1() -> None:
    scores = POPE().scores(["No", "No"], [Target(("yes",), groups=("category/random",))] * 2)
    assert scores["f1"] == scores["category/random/precision"] == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("coco_pope_other.json", "{}", "names no category"),
        ("coco_pope_random.json", "{}", "no 'image'"),
        ("coco_pope_random.json", "[]", "line 1 .* is not a JSON object"),
        ("coco_pope_random.json", "x", "line 1 .* is not JSON"),
        ("other.json", "{}", "holds no questions"),
    ],
)
def test_faults_are_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        POPE().read(tmp_path)

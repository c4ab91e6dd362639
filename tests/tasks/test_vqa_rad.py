import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Judgement, Target
from qvlm_lightning.tasks.vqa_rad import VQARad


def row(number: int, answer: str | int, kind: str, phrase: str = "freeform") -> dict:
    return {
        "qid": number,
        "image_name": f"synpic{number}.jpg",
        "image_organ": "CHEST",
        "question": "Is it normal?",
        "answer": answer,
        "answer_type": kind,
        "phrase_type": phrase,
    }


@pytest.fixture
def release(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "test.json").write_text(json.dumps([row(1, "Yes", "CLOSED ")]))
    (tmp_path / "train.json").write_text(json.dumps([row(2, 4, "OPEN")]))
    return tmp_path


def test_layout(release) -> None:
    (question,) = VQARad().read(release)
    assert question.id == "1"
    assert question.target == Target(("Yes",), groups=("kind/closed", "organ/CHEST"))
    assert question.image == release / "images" / "synpic1.jpg"
    (question,) = VQARad().read(release, "train")
    assert question.target.answers == ("4",)
    assert [q.id for q in VQARad().read(release / "train.json")] == ["2"]


def test_the_public_file_holds_both_splits(tmp_path) -> None:
    rows = [row(1, "Yes", "CLOSED", "test_freeform"), row(2, "no", "CLOSED"), row(3, "x", "OPEN")]
    path = tmp_path / "VQA_RAD Dataset Public.json"
    path.write_text(json.dumps(rows))
    (tmp_path / "VQA_RAD Image Folder").mkdir()
    (question,) = VQARad().read(tmp_path)
    assert question.image == tmp_path / "VQA_RAD Image Folder" / "synpic1.jpg"
    assert [q.id for q in VQARad().read(path, "train")] == ["2", "3"]


@pytest.mark.parametrize(
    ("text", "answer", "points"),
    [
        ("yes", "Yes", 10),
        ("Yes.", "Yes", 10),
        ("Yes, it is", "Yes", 0),  # equality is the strictest reading
        ("the left lung", "Left lung", 10),
        ("lung", "Left lung", 0),
        ("four", "4", 10),
    ],
)
def test_equality_after_normalisation(text: str, answer: str, points: int) -> None:
    assert VQARad().judge(text, Target((answer,))).points == points


@given(text=st.text())
def test_any_text_is_judged(text: str) -> None:
    judgement = VQARad().judge(text, Target(("",)))
    assert judgement.points in (0, 10)
    if judgement.parsed is None:
        assert judgement == Judgement(0, None)


def test_rows_of_the_hub_are_told_apart(tmp_path) -> None:
    """The copy has no ids: image, question and answer make one."""
    black, white = (Image.new("RGB", (4, 4), colour) for colour in ("black", "white"))
    file = tmp_path / "black.png"
    black.save(file)
    columns = {"question": "Is it normal?", "answer": "yes"}
    rows = [columns | {"image": image} for image in (black, white, LazyImage.of(file), None)]
    rows += [columns | {"image": black, "answer": "no"}]
    ids = [VQARad().from_hub(r).id for r in rows]
    assert len(set(ids)) == 5
    assert ids == [VQARad().from_hub(r).id for r in rows]
    assert VQARad().from_hub(rows[0]).target == Target(("yes",))
    in_memory = LazyImage.of(file.read_bytes(), "row 0")
    assert VQARad().from_hub(columns | {"image": in_memory}).id == ids[2]


def test_another_file_is_refused(tmp_path) -> None:
    (tmp_path / "test.json").write_text('[{"qid": 1}]')
    with pytest.raises(InputError, match="of another kind"):
        VQARad().read(tmp_path)


def test_the_release(test_data) -> None:
    folder = test_data / "vqa_rad"
    questions = {split: VQARad().read(folder, split) for split in ("test", "train")}
    assert {split: len(q) for split, q in questions.items()} == {"test": 235, "train": 1830}
    everything = [*questions["test"], *questions["train"]]
    assert len({q.id for q in everything}) == 2065
    assert {q.target.groups[0] for q in everything} == {"kind/closed", "kind/open"}
    assert all(q.image.is_file() for q in everything)
    perfect = VQARad().scores(
        [q.target.answers[0] for q in everything], [q.target for q in everything]
    )
    assert perfect["overall"] == 100

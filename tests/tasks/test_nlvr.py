import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Judgement, Target
from qvlm_lightning.tasks.nlvr import NLVR

ROW = {"identifier": "1572-0", "sentence": "There is a tower.", "label": "true"}


@pytest.mark.parametrize(
    ("name", "row", "image"),
    [
        ("dev.jsonl", {"image": "dev-1572-0-0.png"}, "images/dev-1572-0-0.png"),
        ("dev/dev.json", {"directory": "11"}, "dev/images/11/dev-1572-0-0.png"),
        ("dev.json", {"directory": "11"}, "images/11/dev-1572-0-0.png"),
    ],
)
def test_layouts(tmp_path, name: str, row: dict, image: str) -> None:
    file = tmp_path / name
    (file.parent / "images").mkdir(parents=True)
    file.write_text("\n".join([json.dumps(ROW | row)] * 2) + "\n")
    for path in (tmp_path, file):
        question, _ = NLVR().read(path)
        assert question.id == "1572-0"
        assert question.image == tmp_path / image
        assert question.target == Target(("true",), groups=("label/true",))
    assert NLVR().text(question) == (
        "There is a tower.\nIs this sentence true or false? Answer with one word."
    )


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("true", "true"),
        ("True.", "true"),
        ("The sentence is FALSE", "false"),
        ("true or false", None),  # both: unread, never guessed
        ("untrue", None),
        ("yes", None),
        ("", None),
    ],
)
def test_one_of_the_words_must_occur(text: str, parsed: str | None) -> None:
    judgement = NLVR().judge(text, Target(("true",)))
    assert judgement == Judgement(10 if parsed == "true" else 0, parsed)


@given(text=st.text())
def test_any_text_is_judged(text: str) -> None:
    judgement = NLVR().judge(text, Target(("true",)))
    assert judgement.parsed in (None, "true", "false")
    assert judgement.points == 10 * (judgement.parsed == "true")


def test_a_row_of_the_hub() -> None:
    question = NLVR().from_hub(ROW | {"label": True, "image": None})
    assert question.target.answers == ("true",)


def test_another_file_is_refused(tmp_path) -> None:
    (tmp_path / "dev.jsonl").write_text('{"sentence": "x"}\n')
    with pytest.raises(InputError, match="of another kind"):
        NLVR().read(tmp_path)
    with pytest.raises(InputError, match=r"has none of train\.jsonl"):
        NLVR().read(tmp_path, "train")


def test_the_release(test_data) -> None:
    questions = NLVR().read(test_data / "nlvr")
    assert len({q.id for q in questions}) == 989
    assert all(q.image.is_file() for q in questions)
    targets = [q.target for q in questions]
    assert Counter(t.answers for t in targets)[("true",)] / 989 == pytest.approx(0.553, abs=5e-4)
    assert round(NLVR().scores(["true"] * 989, targets)["overall"], 1) == 55.3

"""Hateful Memes: figures worked out by hand, as the data may not be passed on."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.target import Target
from qvlm_lightning.tasks.hateful_memes import HatefulMemes

HATEFUL = Target(("yes",), groups=("label/hateful",))
BENIGN = Target(("no",), groups=("label/benign",))

# probability of being hateful -> how many of the ten benign ones lie below it
ABOVE = {
    "0.95": 10,
    "0.90": 10,
    "0.85": 10,
    "0.80": 10,
    "0.70": 9,  # below 0.75
    "0.60": 8,  # also below 0.65
    "0.55": 8,
    "0.40": 6,  # above 0.05 0.10 0.15 0.25 0.30 0.35
    "0.30": 4.5,  # above four, and equal to one
    "0.20": 3,
}
BELOW = ["0.05", "0.10", "0.15", "0.25", "0.30", "0.35", "0.45", "0.50", "0.65", "0.75"]
TWENTY = [(p, HATEFUL) for p in ABOVE] + [(p, BENIGN) for p in BELOW]


def test_twenty_probabilities_by_hand() -> None:
    assert sum(ABOVE.values()) == 78.5
    scores = HatefulMemes("probability").scores(*zip(*TWENTY, strict=True))
    assert scores["label/hateful"] == 70  # seven above 0.5
    assert scores["label/benign"] == 80  # eight not above it
    assert scores["overall"] == 75
    assert scores["auroc"] == 78.5
    assert scores["unparsed"] == 0


def test_order_does_not_matter() -> None:
    shuffled = random.Random(0).sample(TWENTY, len(TWENTY))
    task = HatefulMemes("probability")
    assert task.scores(*zip(*shuffled, strict=True)) == task.scores(*zip(*TWENTY, strict=True))


def test_what_is_missing_ranks_on_the_wrong_side() -> None:
    """A hateful one below all ten, a benign one above all eleven: 78.5 of 11 * 11 pairs."""
    rows = [*TWENTY, ("likely", HATEFUL), (None, BENIGN)]
    scores = HatefulMemes("probability").scores(*zip(*rows, strict=True))
    assert scores["auroc"] == pytest.approx(100 * 78.5 / 121)
    assert scores["overall"] == pytest.approx(100 * 15 / 22)
    assert scores["unparsed"] == 2


# text, whether it is right for a hateful meme and for a benign one
TEXTS = [
    ("Yes", True, False),
    ("yes", True, False),
    ("YES", True, False),
    (" yes.\n", True, False),
    ("Yes, it is hateful.", True, False),
    ('"Yes"', True, False),
    ("No", False, True),
    ("no", False, True),
    ("NO!", False, True),
    ("No, it is not.", False, True),
    ("(no)", False, True),
    ("", False, False),
    ("Not sure", False, False),
    ("none", False, False),
    ("yesterday", False, False),
    ("I think yes", False, False),
    ("hateful", False, False),
    ("1", False, False),
    ("maybe no", False, False),
    ("y", False, False),
]


def test_twenty_texts_by_hand() -> None:
    for position, target, share in ((1, HATEFUL, 6), (2, BENIGN, 5)):
        scores = HatefulMemes().scores([row[0] for row in TEXTS], [target] * len(TEXTS))
        assert scores["overall"] == pytest.approx(100 * share / 20)
        assert scores["unparsed"] == 9
        for row in TEXTS:
            assert (HatefulMemes().judge(row[0], target).points == 10) is row[position], row


def test_confidences_of_any_scale_rank() -> None:
    targets = [HATEFUL, BENIGN, HATEFUL, BENIGN]
    texts = ["yes", "no", "no", "no"]
    assert "auroc" not in HatefulMemes().scores(texts, targets)
    assert "auroc" not in HatefulMemes().scores(texts, targets, [None] * 4)
    scores = HatefulMemes().scores(texts, targets, [3.0, -2.0, -3.0, -4.0])
    assert scores["auroc"] == pytest.approx(75)
    assert scores["overall"] == 75


@given(st.text(), st.sampled_from(HatefulMemes.modes), st.sampled_from([HATEFUL, BENIGN]))
def test_any_text_is_judged(text: str, mode: str, target: Target) -> None:
    judgement = HatefulMemes(mode).judge(text, target)
    assert judgement.parsed in ("yes", "no", None)
    assert (judgement.points == 10) is (judgement.parsed in target.answers)


@pytest.mark.parametrize("text", ["nan", "inf", "-0.1", "1.01", "", "0.5.5"])
def test_no_probability(text: str) -> None:
    assert HatefulMemes("probability").judge(text, BENIGN).parsed is None


LINES = [
    {"id": 42, "img": "img/00042.png", "label": 1, "text": "first"},
    {"id": "00007", "img": "img/00007.png", "label": 0, "text": "second"},
]


def test_a_release_is_read(tmp_path: Path) -> None:
    (tmp_path / "dev_seen.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    (tmp_path / "img").mkdir()
    (tmp_path / "img/00042.png").write_bytes(b"")
    first, second = HatefulMemes().read(tmp_path)
    assert (first.id, second.id) == ("42", "00007")
    assert (first.target, second.target) == (HATEFUL, BENIGN)
    assert (first.image, second.image) == (tmp_path / "img/00042.png", None)
    assert HatefulMemes().text(first) == (
        'This is an image with "first" written on it. Is it hateful?\n'
        "Answer the question using a single word or phrase."
    )
    assert [q.id for q in HatefulMemes().read(tmp_path / "dev_seen.jsonl")] == ["42", "00007"]


def test_rows_of_the_hub() -> None:
    question = HatefulMemes().from_hub(LINES[0] | {"image": None})
    assert (question.id, question.target) == ("42", HATEFUL)


@pytest.mark.parametrize(
    ("split", "text", "message"),
    [
        (None, '{"id": 1, "text": "x"}', "no 'label'"),
        (None, '{"id": 1, "text": "x", "label": null}', "no 'label'"),
        (None, "", "holds no memes"),
        ("dev_unseen", "", "there is no file"),
        ("val", "", "allowed are dev_seen"),
    ],
)
def test_faults_are_one_sentence(tmp_path: Path, split, text: str, message: str) -> None:
    (tmp_path / "dev_seen.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        HatefulMemes().read(tmp_path, split)

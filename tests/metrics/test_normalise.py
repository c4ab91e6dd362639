import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.metrics.normalise import (
    evalai_answer,
    lmms_answer,
    official_answer,
    tidy,
    vizwiz_answer,
)

NORMALISERS = [official_answer, vizwiz_answer, evalai_answer, lmms_answer]
MESSY = st.text(st.sampled_from(string.printable + "é’٣ß"), max_size=60)


# Each line by hand from the published rule.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("the cat", "cat"),
        ("a", ""),
        ("none", "0"),
        ("Ten dogs", "10 dogs"),
        ("eleven", "eleven"),
        ("two-story", "2 story"),  # a mark inside a word becomes a space
        ("left - right", "left right"),  # beside a space it goes
        ("well-known - yes", "wellknown yes"),  # and then all of its kind go
        ("1,000", "1000"),  # a number with a comma: every mark goes
        ("1,000 red/blue", "1000 redblue"),
        ("red,blue", "red blue"),
        ("1,,000", "1 000"),  # the official pattern wants one comma
        ("st. louis", "st louis"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("3.", "3"),  # a look-behind for the digit was meant, but mistyped
        ("5 p.m.", "5 pm"),
        ("12:30", "12:30"),  # colon and apostrophe are no punctuation here
        ("dog's", "dog's"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # the table has it the wrong way round
        ("Im", "im"),  # capital entries of the table never match
        ("Id've", "id've"),
        ("#1", "#1"),
        ("  spaced   out  ", "spaced out"),
    ],
)
def test_official(text: str, expected: str) -> None:
    assert official_answer(text) == expected


def test_official_takes_only_32_full_stops() -> None:
    """re.UNICODE, which is 32, is passed as the number of replacements."""
    assert official_answer("." * 40) == "." * 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, it is", "yes it is"),
        ("red,blue", "redblue"),  # commas go before anything else, official blanks this one
        ("why?yes", "whyyes"),
        ("the dog's", "dog 's"),
        ("1,,000", "1000"),
        ("A man.", "man"),
        ("\nTwo\tdogs ", "2 dogs"),
    ],
)
def test_evalai(text: str, expected: str) -> None:
    assert evalai_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("the dog's", "dog's"), ("red,blue", "red blue"), ("1,,000", "1000"), ("\nTwo\t", "2")],
)
def test_lmms(text: str, expected: str) -> None:
    assert lmms_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The can.", "can"),
        ("dont know", "don’t know"),  # VizWiz's table was typed with typographic apostrophes
        ("cant tell", "can't tell"),  # but for a few
        ("couldn'tve", "couldn’t’ve"),
        ("couldnt’ve", "couldn’t’ve"),
        ("couldnt've", "couldnt've"),
        ("wheres", "where's"),
    ],
)
def test_vizwiz(text: str, expected: str) -> None:
    assert vizwiz_answer(text) == expected


def test_tidy() -> None:
    assert tidy("\ta\nb\r\n") == "a b"


def test_evalai_reproduces_llavas_submission(test_data) -> None:
    """6,000 answers of LLaVA-1.5-13B and what its own conversion made of them."""
    path = test_data / "answer_normaliser" / "llava15_13b_vizwiz_test_pairs.jsonl"
    pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == 6000
    assert [p["raw"] for p in pairs if evalai_answer(p["raw"]) != p["processed"]] == []
    trivial = sum(p["raw"].lower() == p["processed"] for p in pairs)
    assert trivial < 6000  # lower case alone does not do


@pytest.mark.parametrize("normalise", NORMALISERS)
@given(text=st.one_of(st.text(max_size=80), MESSY))
def test_any_text_has_a_normal_form(normalise, text: str) -> None:
    result = normalise(text)
    assert result == " ".join(result.split())
    assert not {"a", "an", "the"} & set(result.split())
    assert not set(result) & set(';/[]"{}()=+\\_-><@`,?!')


@given(text=MESSY)
def test_case_does_not_matter(text: str) -> None:
    assert official_answer(text.lower()) == official_answer(text)

"""MMMU's official reading of free text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.metrics.mmmu import choice, matches, normalise, open_answers

OPTIONS = ("a red fox", "two blue birds", "no animal")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B) two blue birds", "B"),
        ("B) two blue birds", None),
        ("A or rather C", "C"),  # the last one mentioned
        ("(A), and not C", "A"),  # brackets go first
        ("(C) or (A)", "A"),
        ("(A) or (B), rather (A)", "A"),
        ("I think there are two blue birds here", "B"),  # more than five words
        ("two blue birds", None),  # too short to quote an option
        ("First a red fox, then two blue birds", "B"),
        ("D", None),
        ("b", None),
        ("", None),
    ],
)
def test_choice(text: str, found: str | None) -> None:
    assert choice(text, OPTIONS) == found


def test_a_free_standing_article_is_a_letter_as_officially() -> None:
    assert choice("A fox and no more", OPTIONS) == "A"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,234.567", [1234.57]),
        ("-3", [-3.0]),
        ("1e3", [1000.0]),
        ("C", [" c", "c "]),
        (" Red ", ["red"]),
        ("", [""]),
    ],
)
def test_normalise(text: str, found: list) -> None:
    assert normalise(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8", [8.0]),
        ("36 watts", ["36 watts", 36.0]),
        ("So x = 3", [3.0]),  # the shortest tail, after the equals sign of the last line
        ("x = 3\nso it is 4.", [4.0]),  # the sign counts in no other line
        ("The result is: red", ["is: red"]),
        ("The final answer is 12,345", [12345.0, 345.0]),
        ("It weighs 1.5e3 g", ["it weighs 1.5e3 g", 1500.0, 1.0, 3.0]),
        ("The answer is .", ["is"]),  # an empty tail gives way to the next indicator's
        ("", [""]),
    ],
)
def test_open_answers(text: str, found: list) -> None:
    assert open_answers(text) == found


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("It is 24/7.", ["24/7", "3.429"], True),
        ("3.4290", ["24/7", "3.429"], True),
        ("3.44", ["24/7", "3.429"], False),
        ("The answer is C", ["C"], True),
        ("acid", ["C"], False),  # a single letter does not match inside a word
        ("trans-2-butene", ["trans"], True),
        ("tran", ["trans"], False),
        ("12,345", ["12345"], True),
    ],
)
def test_matches(text: str, expected: list[str], right: bool) -> None:
    assert matches(open_answers(text), expected) is right


@given(st.text(), st.lists(st.text(max_size=5), max_size=30))
def test_choice_finds_an_option_or_nothing(text: str, options: list[str]) -> None:
    found = choice(text, options)
    assert found is None or "ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(found) < len(options)


@given(st.text(alphabet="abc ().,\n", max_size=9), st.integers(0, 5))
def test_choice_never_guesses(text: str, count: int) -> None:
    """Without a capital letter, and without an option quoted, nothing is found."""
    assert choice(text, ["quoted nowhere"] * count) is None


@given(st.one_of(st.text(), st.text(alphabet="0123456789.,-eE=is \n", max_size=30)))
def test_open_answers_reads_any_text(text: str) -> None:
    found = open_answers(text)
    assert found
    assert found == open_answers(text)
    assert all(isinstance(x, str | float) for x in found)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.metrics.answers import is_correct, parse_answer


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("B", 3, "B"),
        (" B \n", 3, "B"),
        ("(B)", 3, "B"),
        ("B.", 3, "B"),
        ("B) red circle", 3, "B"),
        ("B: red\ncircle", 3, "B"),
        ("D", 3, None),
        ("b", 3, None),
        ("A red circle", 3, None),
        ("Blue", 3, None),
        ("", 3, None),
        ("Red", 0, "red"),
        ("  ", 0, None),
    ],
)
def test_parse(text, choices, expected):
    assert parse_answer(text, choices) == expected


def test_what_is_unparsed_is_wrong_even_where_none_is_expected():
    assert not is_correct("", "")
    assert not is_correct("?", "Z", 3)


def test_open_answers_ignore_case_and_margins():
    assert is_correct(" Yes\n", "yes")
    assert not is_correct("yes yes", "yes")


@given(st.text(), st.integers(0, 8))
def test_parser_never_raises_and_never_invents(text, choices):
    parsed = parse_answer(text, choices)
    if choices and parsed is not None:
        assert parsed in "ABCDEFGH"[:choices]
        assert parsed in text

"""Named parsers of published scorers: a letter of the options, or none; never a guess."""

from string import ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.metrics.letters import PARSERS, answer_is, index, letter, llava, qcm_lepa

# Texts near what parsers look for, and any others.
TEXTS = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from([*"ABCDEFGZab", "The answer is ", "ANSWER: ", ".", ". ", " ", "\n", "1"]),
        max_size=8,
    ).map("".join),
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        ("b", "B"),
        (" B\n", "B"),
        ("B.", "B"),
        ("B.red", "B"),
        ("b. red", None),
        ("The answer is B.", None),
        ("(B)", None),
        ("D", None),  # of three options
        ("", None),
        (".", None),
    ],
)
def test_letter_is_the_rule_of_lmms_eval(text: str, found: str | None) -> None:
    assert letter(text, 3) == found


def test_a_letter_of_another_alphabet_is_none() -> None:
    assert "ı".upper() == "I"
    assert letter("ı", 9) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        ("B. red", "B"),
        ("B.red", None),
        ("B.", None),
        ("b", None),
        (" B", None),
        ("The answer is B.", "B"),
        ("The answer is B!", "B"),  # the published dot stands for any character
        ("The answer is B", None),
        ("The answer is A. No: The answer is B.", None),
        ("E. red", None),  # a bare letter out of range is not searched further
        ("E. The answer is B.", None),
        ("F. The answer is B.", "B"),  # but F is no letter at all to it
        ("F", None),
        ("", None),
    ],
)
def test_llava(text: str, found: str | None) -> None:
    assert llava(text, 3) == found


def test_llava_knows_five_letters() -> None:
    assert llava("F", 6) is None
    assert llava("The answer is F.", 6) is None
    assert answer_is("The answer is F.", 6) == "F"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is C. BECAUSE: it is.", "C"),
        ("The answer is C", None),
        ("the answer is C.", None),
        ("C", None),
        ("The answer is D.", None),
        ("The answer is C. The answer is C.", None),
    ],
)
def test_answer_is(text: str, found: str | None) -> None:
    assert answer_is(text, 3) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("LECTURE: ...\nSOLUTION: ...\n###\nANSWER: A.", "A"),
        ("ANSWER: A", None),
        ("ANSWER: A. ANSWER: B.", None),
        ("The answer is A.", None),
    ],
)
def test_qcm_lepa(text: str, found: str | None) -> None:
    assert qcm_lepa(text, 3) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [("0", "A"), (" 2\n", "C"), ("3", None), ("-1", None), ("B", None), ("1.0", None), ("²", None)],
)
def test_index(text: str, found: str | None) -> None:
    assert index(text, 3) == found


@given(TEXTS, st.integers(0, 30), st.sampled_from(sorted(PARSERS)))
def test_a_parser_finds_an_option_or_nothing(text: str, choices: int, name: str) -> None:
    found = PARSERS[name](text, choices)
    assert found is None or found in tuple(ascii_uppercase[:choices])
    assert found == PARSERS[name](text, choices)


@given(TEXTS, st.sampled_from(sorted(PARSERS.keys() - {"index"})))
def test_a_parser_never_guesses(text: str, name: str) -> None:
    """A letter that is found stands in the text; without any letter nothing is found."""
    found = PARSERS[name](text, 26)
    assert found is None or found in text.upper()


@given(TEXTS, st.integers(1, 25), st.sampled_from(sorted(PARSERS)))
def test_more_options_never_change_a_letter(text: str, choices: int, name: str) -> None:
    fewer, more = (PARSERS[name](text, n) for n in (choices, choices + 1))
    assert fewer in (more, None)

"""Answers of MMMU, read as its ``eval_utils.py`` reads them, without its random fallback."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

Answer = str | float

_WORDS_OF_AN_OPTION = 5
_INDICATORS = (
    "could be ",
    "so ",
    "is ",
    "thus ",
    "therefore ",
    "final ",
    "answer ",
    "result ",
)
_TRIVIAL = set(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,234
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1e5
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def choice(text: str, options: Sequence[str]) -> str | None:
    """Read the letter of an option from free text.

    ``(A)`` goes before a free-standing ``A``; a text of more than five words may also quote an
    option. Of several candidates the last mentioned counts.

    Args:
        text: generated text.
        options: texts of the options in the order of their letters.

    Returns:
        A letter, or None where the official scorer draws one at random.

    Example:
        >>> choice("(A) no, rather (B).", ["x", "y"]), choice("B) y", ["x", "y"])
        ('B', None)
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "  # so that a letter at an end stands free, too
    letters = ascii_uppercase[: len(options)]
    for form in ("({})", " {} "):
        found = {letter: text.rfind(form.format(letter)) for letter in letters}
        if any(place >= 0 for place in found.values()):
            return _last(found)
    if len(text.split()) > _WORDS_OF_AN_OPTION:
        lower = text.lower()
        found = {
            x: lower.rfind(option.lower()) for x, option in zip(letters, options, strict=False)
        }
        if any(place >= 0 for place in found.values()):
            return _last(found)
    return None


def _last(found: dict[str, int]) -> str:
    return max(found, key=lambda letter: found[letter])  # the first of equals, as argmax


def open_answers(text: str) -> list[Answer]:
    """Read all answers that an open response may mean: key phrases, and the numbers in them.

    Args:
        text: generated text.

    Returns:
        Texts in lower case and numbers rounded to two decimals, in order of appearance; a single
        character appears with a space before and behind it.

    Example:
        >>> open_answers("The speed is 1,234.567 m/s.")
        ['1,234.567 m/s', 1234.0, 234.57]
    """
    phrases = _key_phrases(text)
    numbers = [n for phrase in phrases for p in _NUMBERS for n in p.findall(phrase)]
    read = [answer for part in [*phrases, *numbers] for answer in normalise(part)]
    return list(dict.fromkeys(read))


def _key_phrases(text: str) -> list[str]:
    text = text.strip().strip(".").lower()
    # The official split at ". " before a capital never happens: the text is in lower case by then.
    sentences = text.split("\n")
    phrases = []
    for number, sentence in enumerate(sentences):
        last = number == len(sentences) - 1
        tails = [
            sentence.rpartition(indicator)[2].strip()
            for indicator in (*_INDICATORS, *(("=",) if last else ()))
            if indicator in sentence
        ]
        phrase = _shortest(tails)
        if phrase and phrase not in _TRIVIAL:
            phrases.append(phrase)
    return phrases or [text]


def _shortest(tails: Sequence[str]) -> str:
    """Follow the official comparison: an empty tail is replaced by whatever comes next."""
    shortest = ""
    for tail in tails:
        if not shortest or len(tail) < len(shortest):
            shortest = tail
    return shortest


def normalise(text: str) -> list[Answer]:
    """Return a number rounded to two decimals, or the text in lower case.

    Args:
        text: one answer.

    Returns:
        One answer, but two of a single character: with a space before and behind it, lest it match
        inside a word.

    Example:
        >>> normalise("1,234.567"), normalise("C"), normalise("Red")
        ([1234.57], [' c', 'c '], ['red'])
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def matches(answers: Sequence[Answer], expected: Sequence[str]) -> bool:
    """Say whether an expected text is part of an answer, or an expected number is one.

    Args:
        answers: what :func:`open_answers` read.
        expected: allowed answers.

    Example:
        >>> matches(open_answers("It is 24/7."), ["24/7", "3.429"]), matches(["no"], ["yes"])
        (True, False)
    """
    allowed = [answer for text in expected for answer in normalise(text)]
    texts = [answer for answer in allowed if isinstance(answer, str)]
    return any(
        any(text in answer for text in texts) if isinstance(answer, str) else answer in allowed
        for answer in answers
    )

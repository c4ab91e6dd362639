"""From generated text to the letter of an option: one named parser per published scorer.

A parser is a pure function of the text and the number of options. It returns a letter of these
options, or None where its scorer finds none: the published fallback, a random option, is not here.
"""

import re
from collections.abc import Callable, Mapping
from string import ascii_uppercase
from types import MappingProxyType

Parser = Callable[[str, int], str | None]

# The dot stands for any character there as well; both scorers leave it unescaped.
_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
_ANSWER = re.compile(r"ANSWER: ([A-Z]).")
_LLAVA_LETTERS = "ABCDE"


def _one_of(letter: str, choices: int) -> str | None:
    return letter if letter and letter in tuple(ascii_uppercase[: max(choices, 0)]) else None


def _only(pattern: re.Pattern[str], text: str, choices: int) -> str | None:
    found = pattern.findall(text)
    return _one_of(found[0], choices) if len(found) == 1 else None


def letter(text: str, choices: int) -> str | None:
    """Read an answer that is a letter, in either case, or begins with a capital and a full stop.

    The rule of lmms-eval's ScienceQA.

    Args:
        text: generated text.
        choices: number of options.

    Example:
        >>> letter(" b ", 3), letter("B.red", 3), letter("The answer is B.", 3), letter("D", 3)
        ('B', 'B', None, None)
    """
    stripped = text.strip()
    if len(stripped) == 1 and stripped.isascii():  # "ı" is no I, whatever its capital
        return _one_of(stripped.upper(), choices)
    return _one_of(stripped[0], choices) if stripped[1:2] == "." else None


def llava(text: str, choices: int) -> str | None:
    """Read a bare letter, a letter with ". " behind it, or "The answer is X." said exactly once.

    The rule of LLaVA's ``eval_science_qa.py``, for options A to E.

    Args:
        text: generated text.
        choices: number of options.

    Example:
        >>> llava("B", 3), llava("B. red", 3), llava("So. The answer is B.", 3), llava("b", 3)
        ('B', 'B', 'B', None)
    """
    if text[:1] in tuple(_LLAVA_LETTERS) and (len(text) == 1 or text[1:3] == ". "):
        return _one_of(text[0], choices)
    return answer_is(text, min(choices, len(_LLAVA_LETTERS)))


def answer_is(text: str, choices: int) -> str | None:
    """Read "The answer is X." said exactly once, as ScienceQA's own scripts do.

    Args:
        text: generated text.
        choices: number of options.

    Example:
        >>> answer_is("The answer is B. BECAUSE: it is.", 3), answer_is("B", 3)
        ('B', None)
    """
    return _only(_ANSWER_IS, text, choices)


def qcm_lepa(text: str, choices: int) -> str | None:
    r"""Read "ANSWER: X." said exactly once, at the end of a LEPA chain (Q-VLM's scorer).

    Args:
        text: generated text.
        choices: number of options.

    Example:
        >>> qcm_lepa("SOLUTION: it is red.\n###\nANSWER: B.", 3)
        'B'
    """
    return _only(_ANSWER, text, choices)


def index(text: str, choices: int) -> str | None:
    """Read an answer that was already parsed: the option's place, counted from 0.

    ``results`` of ScienceQA's result files; -1 there means that parsing failed.

    Args:
        text: the place as a decimal number.
        choices: number of options.

    Example:
        >>> index("1", 3), index("-1", 3), index("3", 3)
        ('B', None, None)
    """
    stripped = text.strip()
    if re.fullmatch(r"[0-9]{1,2}", stripped) is None or int(stripped) >= choices:
        return None
    return ascii_uppercase[int(stripped)] if int(stripped) < len(ascii_uppercase) else None


PARSERS: Mapping[str, Parser] = MappingProxyType(
    {p.__name__: p for p in (letter, llava, answer_is, qcm_lepa, index)}
)
"""Parsers by their names."""

"""From generated text to an answer: deterministic, and never a guess."""

import re
from string import ascii_uppercase

_LETTER = re.compile(r"\(?([A-Z])(?:[.:)].*)?", re.DOTALL)


def parse_answer(text: str, choices: int = 0) -> str | None:
    """Extract the answer from what a model wrote.

    Args:
        text: generated text.
        choices: number of options of a multiple choice; 0 for an open question.

    Returns:
        The letter of a multiple choice (``B``, ``(B)``, ``B.`` and ``B) ..`` are read), the
        lower-case text of an open answer, or None where there is none.

    Example:
        >>> parse_answer("(B) red", 3), parse_answer(" Red "), parse_answer("D", 3)
        ('B', 'red', None)
    """
    stripped = text.strip()
    if not choices:
        return stripped.casefold() or None
    found = _LETTER.fullmatch(stripped)
    return found.group(1) if found and found.group(1) in ascii_uppercase[:choices] else None


def is_correct(text: str, answer: str, choices: int = 0) -> bool:
    """Say whether a generated text is the expected answer; what cannot be parsed is wrong.

    Args:
        text: generated text.
        answer: expected letter of a multiple choice, or expected text.
        choices: number of options of a multiple choice; 0 for an open question.

    Example:
        >>> is_correct("Red", "red"), is_correct("B", "A", 3)
        (True, False)
    """
    parsed = parse_answer(text, choices)
    return parsed is not None and parsed == parse_answer(answer, choices)

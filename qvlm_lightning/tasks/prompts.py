"""Pieces that prompts of several benchmarks share, word for word as published."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

ANSWER_LETTER = "Answer with the option's letter from the given choices directly."
"""Ends a multiple choice (LLaVA-1.5, lmms-eval)."""
ANSWER_SHORT = "Answer the question using a single word or phrase."
"""Ends an open question (LLaVA-1.5, lmms-eval)."""


def bare(row: Mapping[str, Any]) -> str:
    """Ask the question as it is.

    Example:
        >>> bare({"question": "What is it?"})
        'What is it?'
    """
    return str(row["question"])


def short_answer(row: Mapping[str, Any]) -> str:
    r"""Ask for a single word or phrase: VQA v2, GQA and POPE in LLaVA-1.5 and lmms-eval.

    Example:
        >>> short_answer({"question": "What is it?"})
        'What is it?\nAnswer the question using a single word or phrase.'
    """
    return f"{row['question']}\n{ANSWER_SHORT}"


def lettered(choices: Sequence[str]) -> str:
    r"""Write options one per line with their letters.

    Args:
        choices: the options in their order.

    Example:
        >>> lettered(["red", "blue"])
        'A. red\nB. blue'
    """
    return "\n".join(f"{letter}. {x}" for letter, x in zip(ascii_uppercase, choices, strict=False))


def bracketed(choices: Sequence[str]) -> str:
    """Write options in one line with their letters in brackets.

    Args:
        choices: the options in their order.

    Example:
        >>> bracketed(["red", "blue"])
        '(A) red (B) blue'
    """
    pairs = zip(ascii_uppercase, choices, strict=False)
    return " ".join(f"({letter}) {choice}" for letter, choice in pairs)

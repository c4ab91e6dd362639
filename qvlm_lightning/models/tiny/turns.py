"""A question with its answer, how it splits into words, and how options are lettered."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

LETTERS = ("A", "B", "C")


@dataclass(frozen=True)
class Hint:
    """What the hidden state at one word of a question should know; used in training only.

    ``kind`` is ``"cell"`` (the cell of the object a phrase names), ``"target"`` (the cell that
    holds the answer, at the last word of the prompt: ``word`` is -1), ``"bound"`` (the owner that a
    stated fact gives to this item), ``"word"`` (the word that answers), ``"letter"`` (which option
    this word ends, from 0) or ``"fit"`` (whether that option is the right one, 0 or 1).
    """

    word: int
    kind: str
    value: int | str


@dataclass(frozen=True)
class Turn:
    """One question with its answer, before it is tied to an image or an id."""

    family: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    hints: tuple[Hint, ...] = ()


def words(text: str) -> list[str]:
    """Split a text as the tokenizer does: words, punctuation marks and single digits.

    Example:
        >>> words("which is larger: (A) 17?")
        ['which', 'is', 'larger', ':', '(A)', '1', '7', '?']
    """
    for mark in "?.:":
        text = text.replace(mark, f" {mark} ")
    out: list[str] = []
    for word in text.split():
        out.extend(word if word.isdigit() else [word])
    return out


def lettered(rng: Random, right: str, wrong: list[str]) -> tuple[str, tuple[str, ...], str]:
    """Shuffle options and letter them.

    Args:
        rng: source of the order.
        right: the correct option.
        wrong: the other options.

    Returns:
        The text ``(A) .. (B) .. (C) ..``, the options in that order, and the right letter.
    """
    options = [right, *wrong]
    rng.shuffle(options)
    text = " ".join(f"({letter}) {o}" for letter, o in zip(LETTERS, options, strict=False))
    return text, tuple(options), LETTERS[options.index(right)]


def option_hints(question: str, letter: str, fit: bool = True) -> tuple[Hint, ...]:
    """Say at the last word of every option which letter it has and whether it is right.

    Args:
        question: the question with its options.
        letter: letter of the right option.
        fit: whether to say which is right.

    Returns:
        The hints.
    """
    said = words(question)
    starts = [said.index(f"({name})") for name in LETTERS]
    ends = [start - 1 for start in starts[1:]] + [len(said) - 1]
    hints = [Hint(end, "letter", number) for number, end in enumerate(ends)]
    if fit:
        right = LETTERS.index(letter)
        hints += [Hint(end, "fit", int(number == right)) for number, end in enumerate(ends)]
    return tuple(hints)

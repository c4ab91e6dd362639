"""Questions without an image: a context that states the answer, and a rule about numbers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from qvlm_lightning.models.tiny.scenes import OWNERS, split_of
from qvlm_lightning.models.tiny.turns import Hint, Turn, lettered, option_hints, words

NAMES = (
    *("tom", "ann", "ben", "eva", "max", "lea", "sam", "ida", "leo", "mia", "jon", "zoe"),
    *("kim", "ray", "amy", "dan", "sue", "tim", "pia", "rob", "joy", "lou", "meg", "ned"),
)
ITEMS = (
    *("key", "hat", "cup", "pen", "map", "bag", "box", "coin", "book", "lamp", "rope", "bell"),
    *(
        "drum",
        "fork",
        "ring",
        "shoe",
        "sock",
        "kite",
        "vase",
        "comb",
        "nail",
        "seed",
        "wire",
        "flag",
    ),
)


def choice_context(rng: Random, split: str) -> Turn:
    """Ask about one of two facts stated in the text; each fact belongs to one share only.

    Args:
        rng: source of randomness.
        split: both facts are of the share that it draws from.

    Returns:
        A lettered question with three options: the answer, the other fact's, an outsider.
    """
    facts: list[tuple[str, str]] = []
    while len(facts) < 2:
        name, item = rng.choice(NAMES), rng.choice(ITEMS)
        fresh = all(name != n and item != i for n, i in facts)
        if fresh and split_of(f"{name} has {item}") == OWNERS[split]:
            facts.append((name, item))
    (name, item), (other_name, other_item) = rng.sample(facts, 2)
    context = " ".join(f"{n} has a {i}." for n, i in facts)
    if rng.random() < 0.5:
        question, right, second, pool = f"what has {name}?", item, other_item, ITEMS
    else:
        question, right, second, pool = f"who has a {item}?", name, other_name, NAMES
    third = rng.choice([w for w in pool if w not in (right, second)])
    text, options, letter = lettered(rng, right, [second, third])
    mark = len(words(f"{context} {question}")) - 2
    full = f"{context} {question} {text}"
    bound = (Hint(5 * place + 3, "bound", fact[0]) for place, fact in enumerate(facts))
    hints = (*bound, Hint(mark, "word", right), Hint(-1, "word", right))
    hints += option_hints(full, letter)
    return Turn("choice_context", full, letter, options, hints)


def choice_rule(rng: Random, split: str) -> Turn:
    """Ask which of three two-digit numbers is largest or smallest; triples belong to one share.

    Args:
        rng: source of randomness.
        split: the three numbers are of the share that it draws from.

    Returns:
        A lettered question with three options.
    """
    while True:
        numbers = rng.sample(range(10, 100), 3)
        if split_of(f"numbers {sorted(numbers)}") == OWNERS[split]:
            break
    word, pick = rng.choice((("largest", max), ("smallest", min)))
    right = pick(numbers)
    wrong = [str(n) for n in numbers if n != right]
    text, options, letter = lettered(rng, str(right), wrong)
    question = f"which number is {word}? {text}"
    return Turn("choice_rule", question, letter, options, option_hints(question, letter, fit=False))


def content(turn: Turn) -> tuple[str, ...]:
    """Return what a text tells, whatever it asks: its two facts, or its three numbers.

    Example:
        >>> content(Turn("choice_rule", "which is largest? ...", "A", ("71", "10", "34")))
        ('10', '34', '71')
    """
    told = turn.choices if turn.family == "choice_rule" else turn.question.split(". ")[:2]
    return tuple(sorted(told))


TEXT_BUILDERS: dict[str, Callable[[Random, str], Turn]] = {
    "choice_context": choice_context,
    "choice_rule": choice_rule,
}

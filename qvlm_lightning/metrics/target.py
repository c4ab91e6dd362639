"""What scoring a question needs to know, and what it finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WHOLE = 10
"""Points of a right answer. Leave-one-out scores are multiples of a tenth: integers stay exact."""


@dataclass(frozen=True)
class Target:
    """What is expected of one question."""

    answers: tuple[str, ...]
    """Expected answers: one text or letter, or those of all annotators in their order."""
    choices: tuple[str, ...] = ()
    """Options of a multiple choice in the order of their letters."""
    groups: tuple[str, ...] = ()
    """Groups that the question also counts for, such as ``subject/NAT``; they may overlap."""
    cluster: str = ""
    """Questions of one cluster count only together (MMBench's rotations); empty: alone."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What only one benchmark's rule needs."""


@dataclass(frozen=True)
class Judgement:
    """What a scoring rule says of one answer."""

    points: int
    """0 to WHOLE."""
    parsed: str | None
    """What was read from the text; None where nothing could be read, which is worth 0 points
    unless a task was told to guess."""

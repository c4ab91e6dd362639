"""Regular expressions over names of modules, which an artifact of somebody else may hold."""

from typing import Any

import regex

from qvlm_lightning.errors import InputError

SECONDS = 0.5
"""Longest time that a pattern may take on one name; an ordinary one takes microseconds."""


def check_pattern(pattern: Any) -> None:
    """Refuse what is no regular expression.

    Raises:
        ValueError: it is none; says why.
    """
    try:
        regex.compile(pattern)
    except (regex.error, TypeError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern is found in a name.

    Args:
        pattern: regular expression, searched.
        name: of a module.

    Raises:
        InputError: that takes too long: a pattern that repeats what repeats can take years.

    Example:
        >>> matches("mlp", "layers.0.mlp.down_proj"), matches("^mlp", "layers.0.mlp.down_proj")
        (True, False)
    """
    try:
        return regex.search(pattern, name, timeout=SECONDS) is not None
    except TimeoutError as error:
        raise InputError(
            f"pattern {pattern[:80]!r} takes too long on the name {name[:80]!r}; allowed are "
            "regular expressions without repetitions of repetitions"
        ) from error

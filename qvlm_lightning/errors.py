"""The one exception that means "the user can mend this"."""

import json
import math
from typing import Any


class InputError(ValueError):
    """A user fault: one sentence that names what was given and what is allowed.

    The programs print it as ``error: <sentence>`` and exit with code 2, without a traceback.
    """


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message that is not blank, or the name of its type.

    Example:
        >>> first_line(ValueError("not this\nbut that")), first_line(EOFError())
        ('not this', 'EOFError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_numbers(least: float, strictly: bool = False, **given: float) -> None:
    """Refuse numbers that are too small, infinite or no numbers.

    Args:
        least: the smallest allowed.
        strictly: whether numbers must be above it.
        given: by their names.

    Raises:
        InputError: one of them is.

    Example:
        >>> check_numbers(0, strictly=True, lr=0.01)
    """
    for name, value in given.items():
        enough = value > least if strictly else value >= least
        if not enough or not math.isfinite(value):
            kind = "more than" if strictly else "at least"
            raise InputError(f"{name} {value} is not allowed; {kind} {least}, and finite")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of a file that somebody else may have written.

    Raises:
        ValueError: it is no JSON, or nested more deeply than anything that is meant to be read.

    Example:
        >>> parse_json('{"a": [1]}')
        {'a': [1]}
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error

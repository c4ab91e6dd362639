"""Names that become names of files and folders."""

import re

from qvlm_lightning.errors import InputError

_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def checked_name(name: str, what: str = "name") -> str:
    """Return a name that is safe as part of a path.

    Args:
        name: what was given.
        what: which setting it is, for the message.

    Raises:
        InputError: it holds something else than letters, digits, ``.``, ``_`` and ``-``.

    Example:
        >>> checked_name("random-blocks")
        'random-blocks'
    """
    if not _ALLOWED.fullmatch(name):
        raise InputError(
            f"{what} {name!r} is not allowed; 1 to 64 letters, digits, '.', '_' or '-', a letter "
            "or digit first"
        )
    return name

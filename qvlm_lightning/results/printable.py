"""Text of files as it may be shown: without control characters, and bounded."""

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that move the cursor, hide, or turn the direction of what follows."""


def printable(text: object, limit: int = 300) -> str:
    r"""Return text in one line, with hidden characters written as escapes.

    Args:
        text: anything; what is not a string is written as one.
        limit: most characters; a longer text ends in ``…``.

    Example:
        >>> printable("red\x1b[2Jwall"), printable("a" * 9, limit=4)
        ('red\\x1b[2Jwall', 'aaa…')
    """
    whole = text if isinstance(text, str) else str(text)
    shown = "".join(map(_visible, whole[: limit + 1]))
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def _visible(character: str) -> str:
    if unicodedata.category(character) in _HIDDEN:
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character

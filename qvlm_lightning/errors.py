"""The one exception that means "the user can mend this", and what others raise as such a one."""

import errno
from types import TracebackType
from typing import Self

_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


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


class Foreign:
    """Turns whatever another library raises inside the block into a user fault, ``<what>: <why>``.

    Processors, tokenizers, templates and model folders come from anywhere, and raise anything. What
    the disk does wrong is not theirs, and passes. The block holds nothing but the call: a fault of
    our own code in it would be taken for theirs.

    Args:
        what: what cannot be done, naming the folder or the sample.

    Example:
        >>> with Foreign("the processor of 'folder' cannot be used"):
        ...     {}["patch_size"]
        Traceback (most recent call last):
            ...
        qvlm_lightning.errors.InputError: ... cannot be used: KeyError 'patch_size'
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and error.errno in _STORAGE:
            return
        if isinstance(error, Exception) and not isinstance(error, InputError | MemoryError):
            raise InputError(f"{self.what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    r"""Return what an error says, in one line; its type where the message alone says nothing.

    Example:
        >>> reason(KeyError("a")), reason(ValueError("no:\n- a")), reason(StopIteration())
        ("KeyError 'a'", 'no: - a', 'StopIteration')
    """
    line, name = first_line(error).strip().rstrip("."), type(error).__name__
    if line.endswith(":"):
        rest = [part.strip() for part in str(error).strip().splitlines()[1:] if part.strip()]
        line = " ".join([line, *rest[:1]]).rstrip(":.")
    return f"{name} {line}" if isinstance(error, LookupError) and line != name else line

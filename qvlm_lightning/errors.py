"""The one exception that means "the user can mend this"."""


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

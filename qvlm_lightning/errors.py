"""The one exception that means "the user can mend this"."""


class InputError(ValueError):
    """A user fault: one sentence that names what was given and what is allowed.

    The programs print it as ``error: <sentence>`` and exit with code 2, without a traceback.
    """

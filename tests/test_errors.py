"""What a user reads of an error that another library raised."""

import errno

import pytest

from qvlm_lightning.errors import Foreign, InputError, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one line"), "one line"),
        (ValueError("\n  first\nsecond"), "first"),
        (EOFError(), "EOFError"),
        (RuntimeError(" \n\t"), "RuntimeError"),
    ],
)
def test_the_first_line_that_says_something(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize(
    "error", [KeyError("a"), StopIteration(), TypeError("no"), OSError("gone")]
)
def test_what_others_raise_is_a_user_fault(error):
    with pytest.raises(InputError, match=r"^the folder 'x': ") as fault, Foreign("the folder 'x'"):
        raise error
    assert fault.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), MemoryError(), KeyboardInterrupt(), InputError("one's own")],
)
def test_what_is_not_theirs_passes(error):
    with pytest.raises(type(error)) as fault, Foreign("the folder 'x'"):
        raise error
    assert fault.value is error

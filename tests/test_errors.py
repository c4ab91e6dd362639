"""What a user reads of an error that another library raised."""

import pytest

from qvlm_lightning.errors import first_line


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

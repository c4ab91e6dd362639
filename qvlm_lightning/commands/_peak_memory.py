"""The largest resident set of this process within a stretch of its work, as Linux counts it."""

import re
from contextlib import suppress
from pathlib import Path

_PROCESS = Path("/proc/self")
_RESET = "5"
"""What sets the peak back to what is resident now (proc(5), clear_refs)."""


def reset_peak() -> bool:
    """Begin a stretch; return whether the system could set the peak back."""
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text(_RESET)
        return True
    return False


def peak_bytes() -> int | None:
    """Return the peak since :func:`reset_peak` or the start, bytes; None where nobody counts."""
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
        return None if found is None else 1024 * int(found[1])
    return None

"""The largest resident set of this process, of all its work or of a stretch of it."""

import platform
import re
import resource
from contextlib import suppress
from pathlib import Path

_PROCESS = Path("/proc/self")
_RESET = "5"
"""What sets the peak back to what is resident now (proc(5), clear_refs)."""


def host_peak() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def reset_peak() -> bool:
    """Begin a stretch, which Linux can count; return whether the system could set the peak back."""
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

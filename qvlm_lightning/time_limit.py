"""A limit of time for what a stranger's file makes Python do, such as a chat template."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Stop the block when it takes longer.

    Only in the main thread, to which signals go; elsewhere, and where there are no timers, the
    block takes its time.

    Args:
        seconds: wall time.

    Raises:
        TimeoutError: the block took longer.

    Example:
        >>> with at_most(1):
        ...     done = True
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it takes more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, late)
    left = signal.setitimer(signal.ITIMER_REAL, seconds)[0]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)

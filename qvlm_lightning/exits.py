"""How the programs end: a user fault is one sentence and exit code 2, never a traceback; a signal
is one that tells how to go on.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

from qvlm_lightning.errors import InputError
from qvlm_lightning.files import REASONS
from qvlm_lightning.stopping import command_line, stoppable

USER_FAULT = 2
INTERRUPTED = 130


@contextlib.contextmanager
def user_faults(again: Callable[[], str] = command_line) -> Iterator[None]:
    """Turn user faults inside the block into one sentence on stderr and an exit code.

    ``InputError`` and storage that cannot be read or written end with code 2, a signal with 128 and
    its number (see :func:`~qvlm_lightning.stopping.stoppable`), everything else passes unchanged.
    Serves as a decorator too: ``@user_faults()``.

    Args:
        again: gives the command with which the user goes on after a signal.

    Example:
        >>> with user_faults():
        ...     raise InputError("weight_bits is 1, allowed are 2 to 8 and 16")
        Traceback (most recent call last):
            ...
        SystemExit: 2
    """
    try:
        with stoppable(again), _storage_faults_said_once():
            yield
    except ValueError as fault:
        _end(str(input_error(fault)), USER_FAULT)
    except OSError as fault:
        reason = REASONS.get(fault.errno or 0)
        if reason is None:  # any other is ours and keeps its traceback
            raise
        place = f" ({fault.filename})" if fault.filename else ""
        _end(f"cannot read or write{place}: {reason}", USER_FAULT)
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)


@contextlib.contextmanager
def _storage_faults_said_once() -> Iterator[None]:
    """Within the block, a thread that cannot write prints no traceback.

    TensorBoard writes in a thread, keeps what stopped it and raises it where the program logs or
    closes next: there it becomes a sentence.
    """
    before = threading.excepthook

    def hook(fault: threading.ExceptHookArgs) -> None:
        value = fault.exc_value
        if not (isinstance(value, OSError) and value.errno in REASONS):
            before(fault)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def input_error(fault: ValueError) -> InputError:
    """Return the user fault that caused ``fault``; raise ``fault`` itself if there is none."""
    cause: BaseException | None = fault
    while cause is not None:  # jsonargparse wraps what a constructor raises
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__
    raise fault


def _end(sentence: str, code: int) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(code) from None

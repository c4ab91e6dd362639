"""Signals: a program ends within seconds of one, says how to go on, and returns 128 + its number.

The first signal raises :class:`Stopped` in the main thread, so that files are closed and locks
released on the way out. A thread watches over that: where the main thread does not get out in time
(it waits for another process, or for the disk), or a second signal comes, the process ends at once
in the same way. Nothing is lost by that, because no file is ever changed in place.
"""

import contextlib
import os
import select
import shlex
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SLURM sends SIGTERM before it kills, and whichever of the others ``--signal`` names."""

GRACE = 8.0
"""Seconds that the main thread has to get out."""

_SAME = 0.2
"""Seconds within which a second signal is the first one again: ``timeout`` signals a process, then
its group."""


class Stopped(BaseException):
    """A signal asked the program to end.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def command_line() -> str:
    """Return the command that started this process, as a shell takes it; that of torchrun, where it
    started this process.
    """
    return shlex.join(_torchrun() or sys.orig_argv)


def _torchrun() -> list[str]:
    """Return torchrun's command; nothing without it, or where the system does not tell."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
    except (OSError, ValueError):
        return []
    given = sys.orig_argv[-len(sys.argv) :]
    return words if words[-len(given) :] == given else []


def is_first() -> bool:
    """Say whether this is the process of a run that speaks to the user."""
    return not any(int(os.environ.get(n) or 0) for n in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))


def follows() -> bool:
    """Say whether rank 0 started this process, so that it ends when rank 0 does."""
    outside = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")
    launched = int(os.environ.get("LOCAL_RANK") or 0) > 0
    return launched and not any(name in os.environ for name in outside)


class SignalHandler:
    """Takes the signals of a program, from :meth:`install` to :meth:`remove`.

    Args:
        again: gives the command with which the user goes on.

    Attributes:
        first: number of the signal that came; None while there is none.
        hooks: methods, called with its number, in another thread, as soon as it has come; an object
            is not kept alive by its method.
    """

    def __init__(self, again: Callable[[], str]) -> None:
        self.again = again
        self.first: int | None = None
        self.hooks: list[weakref.WeakMethod[Callable[[int], object]]] = []
        self._said = threading.Lock()
        self._before: dict[signal.Signals, object] = {}
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = -1
        self._over = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Raise in the main thread, once; a process that follows another waits for its end."""
        if self.first is None and not self._over:
            self.first = signum
            if not follows():
                raise Stopped(signum)

    def install(self) -> None:
        """Take the signals; again after somebody else took them."""
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before is not self and before is not signal.SIG_IGN:  # as nohup leaves it
                self._before.setdefault(number, before)
                signal.signal(number, self)

    def start(self) -> None:
        """Take the signals, and watch over what becomes of them."""
        self.install()
        # written to by the system itself: the main thread may not run Python for a while
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        own = weakref.WeakMethod(self._give_back)  # what is registered is never let go
        os.register_at_fork(after_in_child=lambda: _call(own))  # a child would wake its parent
        threading.Thread(target=self._watch, name="signals", daemon=True).start()

    def remove(self) -> None:
        """Give the signals back, and end the watch."""
        self._give_back()
        os.close(self._write)

    def _give_back(self) -> None:
        if self._over:
            return
        self._over = True
        for number, before in self._before.items():
            if signal.getsignal(number) is self:
                signal.signal(number, before)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._wakeup)

    def tell(self, signum: int, again: str | None = None) -> None:
        """Say once what happened and how to go on."""
        if self._said.acquire(blocking=False) and is_first():
            name = signal.Signals(signum).name
            say(f"\nstopped by {name}; go on with: {again or self.again()}")

    def _watch(self) -> None:
        signum = self._next(None)
        if signum is None:
            os.close(self._read)
            return
        began, parent = time.monotonic(), os.getppid()
        for hook in [found for method in self.hooks if (found := method()) is not None]:
            hook(signum)
        while (left := began + GRACE - time.monotonic()) > 0:
            another = self._next(min(left, 0.2))
            if another is None:  # the main thread is out
                os.close(self._read)
                return
            second = another in SIGNALS and time.monotonic() > began + _SAME
            if second or (follows() and os.getppid() != parent):
                break
        self.tell(signum)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(128 + signum)

    def _next(self, timeout: float | None) -> int | None:
        """Return the next signal, 0 if none came in time, None when all is over."""
        while True:
            if not select.select([self._read], [], [], timeout)[0]:
                return 0
            byte = os.read(self._read, 1)
            if not byte:
                return None
            if timeout is not None or byte[0] in SIGNALS:
                return byte[0]


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Call a method of an object that may be gone."""
    found = method()
    if found is not None:
        found()


def say(sentence: str) -> None:
    """Print to the error stream, which may be closed already."""
    with contextlib.suppress(OSError, ValueError):
        print(sentence, file=sys.stderr, flush=True)


def present_handler() -> SignalHandler | None:
    """Return the handler of this program; None in a notebook and in other programs."""
    for number in SIGNALS:
        if isinstance(found := signal.getsignal(number), SignalHandler):
            return found
    return None


@contextlib.contextmanager
def stoppable(again: Callable[[], str] = command_line) -> Iterator[None]:
    """End the block, and the program with it, when a signal comes.

    Inside another such block it only changes what the user is told. In other threads than the main
    one, where Python hands no signals out, it does nothing.

    Args:
        again: gives the command with which the user goes on.

    Raises:
        SystemExit: code 128 + number of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    outer = present_handler()
    handler = outer or SignalHandler(again)
    before, handler.again = handler.again, again
    if outer is None:
        handler.start()
    try:
        yield
    except Stopped as stop:
        handler.tell(stop.signum)
        raise SystemExit(128 + stop.signum) from None
    finally:
        handler.again = before
        if outer is None:
            handler.remove()

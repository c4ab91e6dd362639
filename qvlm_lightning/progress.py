"""Progress bars for the passes that Lightning's own bar does not see; nothing long is silent.

A thread keeps elapsed times moving while something is open. On a terminal it draws every second; in
a log file it says once, after some seconds, what is under way, and then every minute.
"""

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm

BEAT = 1.0
"""Seconds between two looks of the thread."""
OFTEN = 0.1
"""Least seconds between two drawings on a terminal."""
SILENT = 2.0
"""Longest silence, seconds."""
AGAIN = 60.0
"""Seconds between two lines of one phase in a log file."""
FORMAT = "{desc} {percentage:3.0f}% |{bar:4}| {elapsed}<{remaining}{postfix}"
"""What is left, too, stands in 80 columns with a note: time so far < time to go."""


class Progress(Protocol):
    """What is told how far a pass is."""

    def __call__(self, what: str, done: int, of: int, note: str = "") -> None:
        """Take in that ``done`` of ``of`` parts of ``what`` are finished; ``note``: what runs."""


class _Screen:
    """Bars and phases that are open, and the thread that keeps them moving."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.bars: dict[str, tqdm] = {}
        self.phases: list[tuple[str, float]] = []
        self.line: tqdm | None = None
        self.spoken = 0.0
        self.thread: threading.Thread | None = None

    def show(self, what: str, done: int, of: int, note: str) -> None:
        with self.lock:
            self.clear()
            if what not in self.bars:
                # the tiny delay: it draws nothing before it is told to
                self.bars[what] = tqdm(
                    total=of,
                    initial=done,
                    desc=what,
                    delay=1e-9,
                    bar_format=FORMAT,
                    ncols=_columns(),
                )
            bar, now = self.bars[what], time.monotonic()
            bar.set_postfix_str(note, refresh=False)
            bar.n = done
            if done >= of:
                self.bars.pop(what).close()
            elif note or now - self.spoken >= (OFTEN if sys.stderr.isatty() else SILENT):
                bar.refresh()
                self.spoken = now
        self.start()

    def enter(self, what: str) -> None:
        with self.lock:
            self.phases.append((what, time.monotonic()))
        self.start()

    def leave(self) -> None:
        with self.lock:
            self.clear()
            self.phases.pop()

    def start(self) -> None:
        """Start the thread, unless it runs; it ends when nothing is open."""
        with self.lock:
            if self.thread is None and (self.bars or self.phases):
                self.thread = threading.Thread(target=self.watch, daemon=True)
                self.thread.start()

    def watch(self) -> None:
        while True:
            time.sleep(BEAT)
            with self.lock:
                if not (self.bars or self.phases):
                    self.thread = None
                    return
                self.beat()

    def beat(self) -> None:
        """Draw what is open once more; without a terminal, say it if nobody has for long."""
        now = time.monotonic()
        if sys.stderr.isatty():
            for bar in self.bars.values():
                bar.refresh()
            if self.phases and not self.bars:
                self.wait(now)
        elif self.phases and not self.bars:
            what, began = self.phases[-1]
            quiet = now - max(began, self.spoken)
            if quiet >= (SILENT if self.spoken < began else AGAIN):
                print(f"{what} ... {now - began:.0f} s", file=sys.stderr, flush=True)
                self.spoken = now

    def wait(self, now: float) -> None:
        """Draw the line of the innermost phase, which has no bar."""
        what, began = self.phases[-1]
        if now - began >= SILENT - BEAT:
            if self.line is None:
                plain = "{desc} ... {postfix}"
                self.line = tqdm(desc=what, bar_format=plain, leave=False, ncols=_columns())
            self.line.set_description_str(what, refresh=False)
            self.line.set_postfix_str(f"{now - began:.0f} s", refresh=True)

    def clear(self) -> None:
        """Take the line of a phase away."""
        if self.line is not None:
            self.line.close()
            self.line = None


def _columns() -> int | None:
    """Return the width of the terminal, 80 where it says 0; None in a file, which has no width."""
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else None


_screen = _Screen()


def say(line: str) -> None:
    """Print a line above the bars that are open."""
    tqdm.write(line)


def bar(what: str, done: int, of: int, note: str = "") -> None:
    """Show that ``done`` of ``of`` parts of ``what`` are finished; the bar closes with the last
    part.

    Args:
        what: name of the pass.
        done: parts that are finished.
        of: all parts.
        note: what is under way, such as the block and its objective.
    """
    _screen.show(what, done, of, note)


def close() -> None:
    """Close all bars where they stand, such as before a message of a failure."""
    with _screen.lock:
        _screen.clear()
        for one in _screen.bars.values():
            one.close()
        _screen.bars.clear()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that ``what`` is under way while the block runs, unless a bar does.

    Args:
        what: name of the phase.
    """
    _screen.enter(what)
    try:
        yield
    finally:
        _screen.leave()

"""Steps of a long command: what runs, how long it took, and how long is left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

from rich.console import Console


class Step:
    """One step that is under way."""

    def __init__(self) -> None:
        self.skipped = False

    def skip(self) -> None:
        """Say that nothing was to be done: it counts neither as work nor for the estimate."""
        self.skipped = True


class Progress:
    """Prints a line per step with an estimate of the time left.

    Args:
        kinds: kind of every step to come, in their order; steps of a kind take about as long.
        console: where to print; standard error by default, beside the bars.
    """

    def __init__(self, kinds: list[str], console: Console | None = None) -> None:
        self.kinds = kinds
        self.console = console or Console(stderr=True, highlight=False)
        self.began = time.monotonic()
        self.done = 0
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def step(self, label: str) -> Iterator[Step]:
        """Run the next step inside the block.

        Args:
            label: what it does.
        """
        step, kind, began = Step(), self.kinds[self.done], time.monotonic()
        head = f"[{self.done + 1}/{len(self.kinds)}] {label}"
        self.console.print(f"[bold]{head.replace('[', chr(92) + '[', 1)}[/bold]{self.left()}")
        yield step
        self.done += 1
        if step.skipped:
            self.console.print("    already there")
        else:
            self.seconds.setdefault(kind, []).append(time.monotonic() - began)

    def left(self) -> str:
        """Return the estimate of the time left, empty before anything was measured."""
        if not self.seconds:
            return ""
        anything = fmean(s for measured in self.seconds.values() for s in measured)
        means = {kind: fmean(measured) for kind, measured in self.seconds.items()}
        return f"  about {clock(sum(means.get(k, anything) for k in self.kinds[self.done :]))} left"

    def total(self) -> str:
        """Return the time since the start."""
        return clock(time.monotonic() - self.began)


def clock(seconds: float) -> str:
    """Write a duration for people.

    Example:
        >>> clock(59.6), clock(3725)
        ('1:00', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

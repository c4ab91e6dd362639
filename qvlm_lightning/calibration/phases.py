"""Seconds and peak memory of the phases of a run."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from qvlm_lightning.peak_memory import host_peak
from qvlm_lightning.progress import waiting

Spent = dict[str, dict[str, float]]


class Phases:
    """Wall time and memory of a run's phases; a phase that comes again is added up.

    A phase inside another is counted by itself: the outer one's seconds are without it.

    Attributes:
        spent: phase -> ``seconds``, ``host_bytes`` (largest resident set of the process up to the
            end of the phase) and, with a GPU, ``device_bytes`` (largest sum of tensors on it).

    Example:
        >>> phases = Phases()
        >>> with phases("search"):
        ...     pass
        >>> list(phases.spent["search"])[:2]
        ['seconds', 'host_bytes']
    """

    def __init__(self) -> None:
        self.spent: Spent = {}
        self._inside = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what happens inside the block, and show that it is under way."""
        outer, self._inside = self._inside, 0.0
        began = time.perf_counter()
        try:
            with waiting(name):
                yield
        finally:
            passed = time.perf_counter() - began
            self.add({name: {"seconds": passed - self._inside, **memory()}})
            self._inside = outer + passed

    def add(self, spent: Mapping[str, Mapping[str, float]]) -> None:
        """Add what was spent elsewhere, such as before the run was resumed.

        Args:
            spent: as in the attribute; seconds add up, of memory the larger figure counts.
        """
        for name, figures in spent.items():
            known = self.spent.setdefault(name, {})
            for what, value in figures.items():
                before = known.get(what, 0.0)
                known[what] = before + value if what == "seconds" else max(before, value)


def memory() -> dict[str, float]:
    """Return ``host_bytes`` and, once a GPU is in use, ``device_bytes``: peaks so far."""
    found: dict[str, float] = {"host_bytes": host_peak()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["device_bytes"] = torch.cuda.max_memory_allocated()
    return found

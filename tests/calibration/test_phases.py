"""Seconds and memory of phases, with a clock of our own."""

import pytest

from qvlm_lightning.calibration import phases as timing
from qvlm_lightning.calibration.phases import Phases
from qvlm_lightning.peak_memory import host_peak


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def seconds(phases: Phases) -> dict[str, float]:
    return {name: spent["seconds"] for name, spent in phases.spent.items()}


def test_a_phase_inside_another_counts_for_itself_only(clock):
    phases = Phases()
    with phases("outer"):
        clock[0] += 1
        with phases("inner"):
            clock[0] += 10
            with phases("innermost"):
                clock[0] += 100
        with phases("inner"):
            clock[0] += 20
        clock[0] += 2
    with phases("outer"):
        clock[0] += 4
    assert seconds(phases) == {"innermost": 100, "inner": 30, "outer": 7}


def test_a_phase_that_fails_is_counted(clock):
    phases = Phases()

    def fail() -> None:
        with phases("search"):
            clock[0] += 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seconds(phases) == {"search": 3}


def test_what_was_spent_before_a_resume_is_added(clock):
    phases = Phases()
    with phases("search"):
        clock[0] += 3
    peak = phases.spent["search"]["host_bytes"]
    phases.add({"search": {"seconds": 5.0, "host_bytes": 1.0}, "export": {"seconds": 2.0}})
    assert seconds(phases) == {"search": 8, "export": 2}
    assert phases.spent["search"]["host_bytes"] == peak


def test_memory_is_the_largest_so_far():
    before = host_peak()
    held = bytearray(64 * 2**20)
    held[:: 2**12] = b"x" * len(held[:: 2**12])  # every page is touched
    assert host_peak() >= before
    phases = Phases()
    with phases("export"):
        pass
    assert phases.spent["export"]["host_bytes"] >= len(held)

"""A limit of time for what somebody else's file makes Python do."""

import signal
import threading
import time

import pytest

from qvlm_lightning.time_limit import at_most


def test_what_takes_long_is_stopped():
    start = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"more than 0\.1 seconds"), at_most(0.1):
        time.sleep(60)
    assert time.perf_counter() - start < 2


def test_nothing_stays_of_a_limit():
    before, left = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0]
    with at_most(5):
        assert 4 < signal.getitimer(signal.ITIMER_REAL)[0] <= 5
    assert signal.getitimer(signal.ITIMER_REAL)[0] == pytest.approx(left, abs=2)
    assert signal.getsignal(signal.SIGALRM) is before


def test_in_another_thread_there_is_none():
    found = []

    def run() -> None:
        with at_most(0.01):
            time.sleep(0.05)
        found.append("done")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == ["done"]

import io
import re

from rich.console import Console

from qvlm_lightning.commands import _progress
from qvlm_lightning.commands._progress import Progress


def test_time_left_is_the_mean_of_each_kind(monkeypatch):
    now = iter([0, 0, 60, 60, 90, 90, 150])  # start; begin and end of each step
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(now))
    screen = io.StringIO()
    progress = Progress(["train", "test", "train", "test"], Console(file=screen, width=80))
    for label in ("train one", "test one", "train two"):
        with progress.step(label):
            pass
    lines = screen.getvalue().splitlines()
    assert lines[0] == "[1/4] train one"
    # only training was measured: every step counts as long
    assert lines[1] == "[2/4] test one  about 3:00 left"
    assert lines[2] == "[3/4] train two  about 1:30 left"
    assert progress.left() == "  about 0:30 left"


def test_skipped_steps_do_not_enter_the_estimate():
    screen = io.StringIO()
    progress = Progress(["train", "train"], Console(file=screen, width=80))
    with progress.step("train one") as step:
        step.skip()
    assert progress.left() == ""
    assert re.search("already there", screen.getvalue())

"""Bars and phases: what is shown, and that nothing long is silent."""

import io
import sys
import time

import pytest
import torch
from tqdm import tqdm

from qvlm_lightning import progress
from qvlm_lightning.progress import bar, close, waiting


class Screen(io.StringIO):
    """Standard error that is a terminal or is not."""

    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


@pytest.fixture
def screen(monkeypatch):
    """Replace standard error; a second is a hundredth."""
    for name, seconds in (("BEAT", 0.01), ("SILENT", 0.02), ("AGAIN", 0.3)):
        monkeypatch.setattr(progress, name, seconds)
    monkeypatch.setenv("COLUMNS", "80")
    close()
    for left in list(tqdm._instances):  # of tests that end with a fault
        left.close()

    def start(tty: bool) -> Screen:
        shown = Screen(tty)
        monkeypatch.setattr(sys, "stderr", shown)
        return shown

    yield start
    close()


def until(said, text: str) -> str:
    """Return what was said once it has the text, or after two seconds."""
    for _ in range(200):
        if text in said.getvalue():
            break
        time.sleep(0.01)
    return said.getvalue()


def test_a_bar_says_phase_note_and_what_is_left(screen):
    said = screen(tty=False)
    bar("search language", 0, 4, "block 1/2: layers 0-1")
    assert "search language   0% |    | 00:00<?, block 1/2: layers 0-1" in said.getvalue()
    bar("search language", 2, 4, "block 2/2: layers 2-3, J 0.5->0.25")
    bar("search language", 4, 4)
    lines = said.getvalue().replace("\r", "\n").splitlines()
    assert any(" 50% " in line and line.endswith("J 0.5->0.25") for line in lines)
    assert "search language 100%" in lines[-1]
    assert said.getvalue().endswith("\n")


def test_bars_fit_a_terminal_that_says_nothing_of_its_width(screen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    said = screen(tty=True)
    bar("search vision", 1, 4, "x" * 200)
    (line,) = said.getvalue().strip("\r\n").split("\r")
    assert line.startswith("search vision  25%")
    assert len(line) <= 80


def test_a_long_phase_without_a_bar_is_said_in_a_log(screen):
    said = screen(tty=False)
    with waiting("loading the model"):
        until(said, "loading the model ... ")
        time.sleep(0.1)
    lines = said.getvalue().splitlines()
    assert [line[:22] for line in lines] == ["loading the model ... "]  # once, for now


def test_it_is_said_again_and_again(screen, monkeypatch):
    monkeypatch.setattr(progress, "AGAIN", 0.05)
    said = screen(tty=False)
    with waiting("export"):
        for _ in range(200):
            if said.getvalue().count("export ... ") >= 3:
                break
            time.sleep(0.01)
    assert said.getvalue().count("export ... ") >= 3


def test_on_a_terminal_the_time_moves_while_a_phase_waits(screen):
    said = screen(tty=True)
    with waiting("dependency"):
        until(said, "dependency ... ")
    assert "dependency ... " in said.getvalue()
    assert said.getvalue().rstrip(" ").endswith("\r")  # the line is gone again


def test_on_a_terminal_the_time_of_a_bar_moves(screen):
    said = screen(tty=True)
    bar("search vision", 0, 4, "block 1/2")
    for _ in range(200):
        if said.getvalue().count("search vision") >= 3:
            break
        time.sleep(0.01)
    assert said.getvalue().count("search vision") >= 3


def test_the_innermost_phase_is_shown(screen):
    said = screen(tty=False)
    with waiting("outer"), waiting("inner"):
        until(said, "inner ... ")
    assert "inner ... " in said.getvalue()
    assert "outer ... " not in said.getvalue()


def test_a_short_phase_says_nothing(screen, monkeypatch):
    monkeypatch.setattr(progress, "SILENT", 5.0)
    said = screen(tty=False)
    with waiting("statistics"):
        time.sleep(0.1)
    assert said.getvalue() == ""


def test_the_thread_ends_when_nothing_is_open(screen):
    screen(tty=False)
    with waiting("statistics"):
        assert progress._screen.thread is not None
    for _ in range(200):
        if progress._screen.thread is None:
            break
        time.sleep(0.01)
    assert progress._screen.thread is None


def test_a_notebook_leaves_no_bar_open_behind_a_fault(monkeypatch):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import qvlm_lightning
    from qvlm_lightning.models.tiny import WEIGHTS, generate

    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS)
    with torch.no_grad():  # finite; their product is not
        for name in ("up_proj", "gate_proj"):
            model.get_submodule(f"model.language_model.layers.1.mlp.{name}").weight[0] *= 1e38
    drawn = next(s for s in generate("calibration", 9) if s.image is not None)
    samples = [{"image": drawn.image, "question": drawn.question, "answer": drawn.answer}]
    open_before = len(tqdm._instances)
    with pytest.raises(qvlm_lightning.InputError):
        qvlm_lightning.quantize(model, AutoProcessor.from_pretrained(WEIGHTS), samples)
    assert len(tqdm._instances) <= open_before

"""Blocks that an interrupted search has decided, and what a killed process leaves of them."""

import os

import pytest

from qvlm_lightning.calibration.search_progress import SearchProgress


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """Progress of a search whose process died while it wrote the second block."""

    def die(_: int) -> None:
        raise KeyboardInterrupt

    progress = SearchProgress(tmp_path / "search")
    progress.write("epoch0-language", "key", [{"choice": [0]}])
    with monkeypatch.context() as dying:
        dying.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            progress.write("epoch0-language", "key", [{"choice": [0]}, {"choice": [1]}])
    return progress


def test_a_write_that_died_changes_nothing(killed):
    assert killed.read("epoch0-language", "key") == [{"choice": [0]}]


def test_the_next_process_removes_what_was_half_written(killed, tmp_path, monkeypatch):
    number = os.getpid() + 1
    monkeypatch.setattr(os, "getpid", lambda: number)
    resumed = SearchProgress(tmp_path / "search")
    resumed.write("epoch0-language", "key", [{"choice": [0]}, {"choice": [2]}])
    assert resumed.read("epoch0-language", "key") == [{"choice": [0]}, {"choice": [2]}]
    assert [p.name for p in (tmp_path / "search").iterdir()] == ["epoch0-language.json"]

"""Checkpoints: one is whole at any time, and a damaged one has another before it."""

import errno
import os
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from qvlm_lightning.calibration.checkpoint import (
    LAST,
    PREVIOUS,
    CheckpointFiles,
    latest,
    read_checkpoint,
)
from qvlm_lightning.errors import InputError


def contents(number: int) -> dict[str, object]:
    return {"global_step": number, "state_dict": {"x": torch.full((64,), float(number))}}


def step(path: Path) -> int:
    return read_checkpoint(path)["global_step"]


@pytest.fixture
def stored(tmp_path) -> Path:
    """A folder after three checkpoints."""
    files = CheckpointFiles()
    for number in (1, 2, 3):
        files.save_checkpoint(contents(number), tmp_path / LAST)
    return tmp_path


def flip(path: Path) -> None:
    """Change one bit in the middle of the tensors."""
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((64,), 3.0).numpy().tobytes()) + 8] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_two_generations_stay(stored):
    assert [step(stored / name) for name in (LAST, PREVIOUS)] == [3, 2]
    assert sorted(p.name for p in stored.iterdir()) == [LAST, PREVIOUS]
    path, found, note = latest(stored)
    assert (path, found["global_step"], note) == (stored / LAST, 3, "")


def test_nothing_goes_through_the_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    CheckpointFiles().save_checkpoint(contents(1), tmp_path / LAST)
    assert step(tmp_path / LAST) == 1


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_one_is_named_and_the_one_before_it_taken(stored, damage):
    damage(stored / LAST)
    path, found, note = latest(stored)
    assert (path, found["global_step"]) == (stored / PREVIOUS, 2)
    assert str(stored / LAST) in note
    assert str(stored / PREVIOUS) in note


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_one_does_not_take_the_place_of_the_one_before_it(stored, damage):
    damage(stored / LAST)
    CheckpointFiles().save_checkpoint(contents(4), stored / LAST)  # the resumed process
    assert [step(stored / name) for name in (LAST, PREVIOUS)] == [4, 2]


def test_the_one_before_is_enough(stored):
    (stored / LAST).unlink()
    assert latest(stored)[1]["global_step"] == 2


def test_both_damaged_are_refused(stored):
    for name in (LAST, PREVIOUS):
        cut(stored / name)
    with pytest.raises(InputError, match=LAST):
        latest(stored)


def test_an_empty_folder_has_none(tmp_path):
    assert latest(tmp_path) is None


CALLS = {"open": 6, "fsync": 5, "replace": 2}
"""Of one checkpoint: each of two files is created and synced, the new one twice, and its folder."""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_fault_anywhere_leaves_a_whole_one(stored, monkeypatch, call, at, code):
    real, calls = getattr(os, call), []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    with monkeypatch.context() as faulty:
        faulty.setattr(os, call, fail)
        enough = pytest.raises(InputError, match=re.escape(repr(str(stored))))
        with enough if at <= CALLS[call] else nullcontext():
            CheckpointFiles().save_checkpoint(contents(4), stored / LAST)
    assert step(stored / LAST) in (3, 4)
    assert step(stored / PREVIOUS) in (2, 3)
    assert sorted(p.name for p in stored.iterdir()) == [LAST, PREVIOUS]


def test_what_is_read_back_wrongly_is_refused(stored, monkeypatch):
    real = Path.read_bytes

    def wrong(path: Path) -> bytes:
        data = real(path)
        return data[:-1] + bytes([data[-1] ^ 1]) if path.name.endswith(".part") else data

    with monkeypatch.context() as faulty:
        faulty.setattr(Path, "read_bytes", wrong)
        with pytest.raises(InputError, match="EIO"):
            CheckpointFiles().save_checkpoint(contents(4), stored / LAST)
    assert [step(stored / name) for name in (LAST, PREVIOUS)] == [3, 2]


def test_a_disk_without_links_keeps_two_generations_too(stored, monkeypatch):
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    CheckpointFiles().save_checkpoint(contents(4), stored / LAST)
    assert [step(stored / name) for name in (LAST, PREVIOUS)] == [4, 3]


def test_a_kill_between_two_generations_leaves_no_rubbish(stored):
    """The second name was made, the first not renamed: both are the same file."""
    (stored / PREVIOUS).unlink()
    os.link(stored / LAST, stored / PREVIOUS)
    CheckpointFiles().save_checkpoint(contents(4), stored / LAST)
    assert [step(stored / name) for name in (LAST, PREVIOUS)] == [4, 3]
    assert sorted(p.name for p in stored.iterdir()) == [LAST, PREVIOUS]


@pytest.mark.parametrize("path", ["nowhere.ckpt", "list.ckpt"])
def test_what_is_no_checkpoint_is_one_sentence(tmp_path, path):
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(InputError, match=path):
        read_checkpoint(tmp_path / path)

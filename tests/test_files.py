"""Whatever the system does while files are written, the old state or the new is there whole."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qvlm_lightning.errors import InputError
from qvlm_lightning.files import (
    storage_faults,
    write_json,
    write_whole,
    writing,
    writing_folder,
)
from qvlm_lightning.tensor_files import write_tensors

CALLS = ("open", "fsync", "replace")
CODES = {
    errno.ENOSPC: "the disk is full",
    errno.EIO: "EIO",
    errno.EROFS: "read-only",
    errno.EDQUOT: "quota",
}


def failing(monkeypatch, call: str, code: int, at: int) -> None:
    """Let the ``at``-th call of ``os.<call>`` fail."""
    real, calls = getattr(os, call), []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, fail)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": 1})
    write_whole(path, "two ü")
    assert contents(tmp_path) == {"new/a.json": "two ü".encode()}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0, 0o644)])
def test_others_may_read_what_the_umask_allows(tmp_path, mask: int, mode: int):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", "x")
        write_tensors(tmp_path / "b", {"x": torch.ones(2)})
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert modes == [mode, mode]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_leaves_the_old_file(tmp_path, monkeypatch, call: str, code: int):
    write_whole(tmp_path / "a", "old")
    with monkeypatch.context() as faulty:
        failing(faulty, call, code, 1)
        with pytest.raises(InputError, match=CODES[code]) as fault:
            write_tensors(tmp_path / "a", {"x": torch.ones(2)})
    assert repr(str(tmp_path)) in str(fault.value)
    assert contents(tmp_path) == {"a": b"old"}


def test_a_fault_behind_the_rename_leaves_the_new_file(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", "old")
    with monkeypatch.context() as faulty:
        failing(faulty, "fsync", errno.EIO, 2)  # of the folder
        with pytest.raises(InputError):
            write_whole(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": b"new"}


def test_the_file_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    done: list[str] = []
    for call in ("fsync", "replace"):
        real = getattr(os, call)

        def note(*args, call=call, real=real):
            kind = "folder" if call == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode) else ""
            done.append(f"{call} {kind}".strip())
            return real(*args)

        monkeypatch.setattr(os, call, note)
    write_whole(tmp_path / "a", "x")
    assert done == ["fsync", "replace", "fsync folder"]


def test_a_disk_that_fills_up_in_the_middle(tmp_path):
    """``/dev/full`` takes nothing: the buffer is refused when the file is closed."""
    write_whole(tmp_path / "a", "old")

    def write() -> None:
        with writing(tmp_path / "a") as scratch:
            scratch.symlink_to("/dev/full")
            scratch.write_text("new")

    with pytest.raises(InputError, match="the disk is full"):
        write()
    assert contents(tmp_path) == {"a": b"old"}


def test_what_interrupts_leaves_nothing(tmp_path):
    write_whole(tmp_path / "a", "old")

    def write() -> None:
        with writing(tmp_path / "a") as scratch:
            scratch.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert contents(tmp_path) == {"a": b"old"}


def test_complaints_of_libraries_are_not_taken_for_the_disk(tmp_path):
    with pytest.raises(OSError, match="no such model"), storage_faults(tmp_path):
        raise OSError("no such model on the hub")


def make(folder: Path, value: str) -> None:
    with writing_folder(folder) as scratch:
        (scratch / "a").write_text(value)
        write_json(scratch / "deep" / "b.json", value)


def held(folder: Path) -> str:
    assert json.loads((folder / "deep" / "b.json").read_text()) == (folder / "a").read_text()
    return (folder / "a").read_text()


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    make(tmp_path / "f", "one")
    (tmp_path / "f" / "only in the old one").touch()
    make(tmp_path / "f", "two")
    assert held(tmp_path / "f") == "two"
    assert contents(tmp_path).keys() == {"f/a", "f/deep/b.json"}


# the file of write_json: open fsync replace fsync; then three files and folders, and the parent
FOLDER_FAULTS = [("fsync", n) for n in range(1, 7)] + [("rename", 1), ("rename", 2), ("replace", 1)]


@pytest.mark.parametrize(("call", "at"), FOLDER_FAULTS)
def test_a_fault_leaves_the_old_folder(tmp_path, monkeypatch, call: str, at: int):
    make(tmp_path / "f", "old")
    with monkeypatch.context() as faulty:
        failing(faulty, call, errno.ENOSPC, at)
        with pytest.raises(InputError, match="the disk is full"):
            make(tmp_path / "f", "new")
    assert held(tmp_path / "f") == "old"
    assert contents(tmp_path).keys() == {"f/a", "f/deep/b.json"}


def test_a_kill_between_the_renames_is_mended_by_the_next_call(tmp_path, monkeypatch):
    make(tmp_path / "f", "old")
    (tmp_path / "f").rename(tmp_path / ".f.old")
    with monkeypatch.context() as faulty:
        failing(faulty, "fsync", errno.EIO, 1)
        with pytest.raises(InputError):
            make(tmp_path / "f", "new")
    assert held(tmp_path / "f") == "old"
    make(tmp_path / "f", "new")
    assert held(tmp_path / "f") == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_tensors_of_every_type_come_back(tmp_path):
    tensors = {
        "bf16": torch.randn(3, 2).bfloat16(),
        "f64": torch.randn(2, dtype=torch.float64).t(),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
    }
    write_tensors(tmp_path / "x.safetensors", tensors, {"a": "ü", "b": '"'})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], x) and found[n].dtype == x.dtype for n, x in tensors.items())

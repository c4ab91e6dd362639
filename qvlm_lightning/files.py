"""The one writer of files: beside the target, synced, renamed; the old state or the new one.

A file is written as ``.<name>.part`` in the folder of its target, so that the rename never crosses
file systems, and reaches the disk before the target's name does. Whatever goes wrong on the way,
the target stays as it was, the temporary file is removed, and one sentence names the folder.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from qvlm_lightning.errors import InputError

MODE = 0o644
"""Of new files, less what the process's umask takes."""

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an error (EIO)",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a file stands where a folder is needed",
}
"""Faults of the machine that the user can mend, in words."""


@contextlib.contextmanager
def storage_faults(folder: Path) -> Iterator[None]:
    """Turn what the system says against writing into a sentence that names the folder.

    Args:
        folder: where the block writes.

    Raises:
        InputError: the block met an ``OSError`` of the system.
    """
    try:
        yield
    except OSError as fault:
        if fault.errno is None:  # not the system: libraries raise their own complaints as OSError
            raise
        reason = REASONS.get(fault.errno or 0) or fault.strerror or str(fault)
        raise InputError(
            f"cannot write into {str(folder)!r}: {reason}; what was there is unchanged, so mend "
            "that and give the command again"
        ) from fault


def check_folder(folder: Path) -> None:
    """Check that a folder is there or can be made, and may be written into; make nothing.

    Args:
        folder: of what will be written, long work from now.

    Raises:
        InputError: a file stands in its place or above it, or the system does not permit it.
    """
    with storage_faults(folder):
        place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "", str(place))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path; when the block ends, the file there takes the place of ``path``.

    Args:
        path: the target; its folder is made where there is none.

    Yields:
        A path in the same folder, at which nothing lies yet.

    Raises:
        InputError: the system refuses; the target is what it was.
    """
    scratch = path.with_name(f".{path.name}.part")
    with storage_faults(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            scratch.unlink(missing_ok=True)  # of a process that was killed
            yield scratch
            sync(scratch)
            os.replace(scratch, path)
        except BaseException:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextlib.contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder; when the block ends, it takes the place of ``folder``.

    A folder cannot be renamed over another, so that the old one steps aside as ``.<name>.old``
    first. Whoever is killed between the two renames leaves it there, and the next call puts it
    back.

    Args:
        folder: the target.

    Yields:
        An empty folder beside it.

    Raises:
        InputError: the system refuses; the target is what it was.
    """
    scratch, old = folder.with_name(f".{folder.name}.part"), aside(folder)
    with storage_faults(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            _put_back(old, folder)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            yield scratch
            for place, _, names in os.walk(scratch, topdown=False):
                for path in (*(Path(place) / name for name in names), Path(place)):
                    sync(path)
            if folder.exists():
                os.rename(folder, old)
            os.rename(scratch, folder)
        except BaseException:
            with contextlib.suppress(OSError):
                _put_back(old, folder)
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        sync(folder.parent)


def _put_back(old: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.rename(old, folder)


def aside(path: Path) -> Path:
    """Return where a file or folder waits while another takes its place."""
    return path.with_name(f".{path.name}.old")


@contextlib.contextmanager
def stepping_aside(*paths: Path) -> Iterator[None]:
    """Let files step aside, so that new ones take their places; put them back if that fails.

    Args:
        paths: in one folder; the first one marks the others whole, so that it goes first and comes
            back last. Whoever is killed meanwhile leaves no mark.

    Raises:
        InputError: the system refuses.
    """
    with storage_faults(paths[0].parent):
        there = {path for path in paths if path.exists()}
        try:
            for path in paths:
                aside(path).unlink(missing_ok=True)  # of a process that was killed
                if path in there:
                    os.replace(path, aside(path))
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                for path in reversed(paths):
                    if aside(path).exists():
                        os.replace(aside(path), path)
                    elif path not in there:
                        path.unlink(missing_ok=True)
            raise
        for path in paths:
            aside(path).unlink(missing_ok=True)


def create(path: Path) -> IO[bytes]:
    """Open a file for writing, empty and of mode 0644 less the umask."""
    return open(path, "wb", opener=lambda name, flags: os.open(name, flags, MODE))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Args:
        path: the file.
        content: text is stored as UTF-8.

    Raises:
        InputError: the system refuses; the file is what it was.
    """
    with writing(path) as scratch, create(scratch) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as :func:`write_whole` does."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as fault:
        if fault.errno != errno.EINVAL or not path.is_dir():  # file systems that sync no folders
            raise
    finally:
        os.close(number)

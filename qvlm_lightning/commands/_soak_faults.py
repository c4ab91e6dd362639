"""Faults of the disk, injected into this process: its n-th write, fsync or rename fails."""

import builtins
import errno
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS, "SHORT": errno.ENOSPC}
"""A short write stores half of what it is given before the disk is full."""


@dataclass(frozen=True)
class Fault:
    """A fault to come.

    Attributes:
        at: number of the operation that fails, from 1; 0 only counts them.
        kind: one of :data:`KINDS`.
        lasting: whether everything behind it fails too, as on a disk that stays full.
    """

    at: int = 0
    kind: str = "ENOSPC"
    lasting: bool = False


class FaultyDisk:
    """Counts what this process does to files below some folders, and lets it fail.

    Args:
        folders: whose files count.
        fault: what is to come.
        trace: file that gets a line of JSON per operation: its name, the path, whether it failed.
    """

    def __init__(self, folders: Sequence[Path], fault: Fault, trace: Path) -> None:
        self.folders = [str(folder.resolve()) + os.sep for folder in folders]
        self.fault = fault
        self.count = 0
        self._open = io.open
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._write = os.write

    def install(self) -> None:
        """Take the place of the functions with which Python code writes."""
        for name in ("replace", "rename", "link"):
            setattr(os, name, self._between(name, getattr(os, name)))
        for name in ("fsync", "fdatasync", "write", "pwrite", "ftruncate"):
            setattr(os, name, self._on_number(name, getattr(os, name)))
        io.open = builtins.open = self._opened

    def meets(self, name: str, path: str) -> bool:
        """Count an operation, and say whether it is to fail."""
        if not (path + os.sep).startswith(tuple(self.folders)):
            return False
        self.count += 1
        at, fault = self.count, self.fault
        fails = fault.at > 0 and (at == fault.at or (fault.lasting and at > fault.at))
        line = json.dumps({"call": name, "path": path, "failed": fails})
        self._write(self._trace, f"{line}\n".encode())
        return fails

    def error(self, path: str) -> OSError:
        """Return what the system says."""
        code = KINDS[self.fault.kind]
        return OSError(code, os.strerror(code), path)

    def _between(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any, **rest: Any) -> Any:
            path = os.path.abspath(os.fspath(target))
            if self.meets(name, path):
                raise self.error(path)
            return real(source, target, **rest)

        return call

    def _on_number(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(number: int, *rest: Any) -> Any:
            path = path_of(number)
            if self.meets(name, path):
                raise self.error(path)
            return real(number, *rest)

        return call

    def _opened(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wax+"):
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _FaultyFile(file, "".join(set(mode) & set("rwax+")), closefd, opener)
        raw.disk = self
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)


class _FaultyFile(io.FileIO):
    disk: FaultyDisk
    _short = False

    def write(self, data: Any) -> int:
        path = path_of(self.fileno())
        if self._short or self.disk.meets("write", path):
            if self.disk.fault.kind == "SHORT" and not self._short and len(data) > 1:
                self._short = True
                return super().write(memoryview(data).cast("B")[: len(data) // 2])
            raise self.disk.error(path)
        return super().write(data)


def path_of(number: int) -> str:
    """Return the path behind a file number; empty where there is none."""
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""

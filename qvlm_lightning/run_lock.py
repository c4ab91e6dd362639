"""One process per run folder: a file that names its host and process, held while that one lives."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qvlm_lightning.errors import InputError
from qvlm_lightning.files import MODE, storage_faults

LOCK = "run.lock"


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder; taken again by the process that holds it, it changes nothing.

    The system's own lock on the file ends with its process, so that what a killed one of this host
    left is taken over. What a process of another host left cannot be judged from here.

    Args:
        folder: of the run; made where there is none, and removed again if nothing came of it.

    Raises:
        InputError: another process of this host has it, or one of another host had it and left its
            file.
    """
    path, me = folder / LOCK, {"host": socket.gethostname(), "pid": os.getpid()}
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    with storage_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        number = _locked(path)
    if number is None:
        if (owner := _owner(path)) == me:
            yield
            return
        raise InputError(
            f"run folder {str(folder)!r} is in use by process {owner.get('pid')} on "
            f"{owner.get('host')}; wait for its end, or give another folder"
        )
    try:
        owner = _owner(path)
        if owner and owner.get("host") != me["host"]:
            raise InputError(
                f"run folder {str(folder)!r} is in use by process {owner.get('pid')} on host "
                f"{owner.get('host')}, which cannot be asked from here; if it is gone, delete "
                f"{str(path)!r}"
            )
        with storage_faults(folder):
            os.truncate(number, 0)
            os.pwrite(number, (json.dumps(me) + "\n").encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
                for place in made:
                    place.rmdir()  # which takes empty ones only
    finally:
        os.close(number)


def _locked(path: Path) -> int | None:
    """Return the open file, locked; None if another process has it."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, MODE)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(number), path.stat()):
                return number
        except BlockingIOError:
            os.close(number)
            return None
        except BaseException:
            os.close(number)
            raise
        os.close(number)  # removed by the one that had it, between our open and our lock


def _owner(path: Path) -> dict[str, Any]:
    """Return what the file says; nothing where it is empty or cut off."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

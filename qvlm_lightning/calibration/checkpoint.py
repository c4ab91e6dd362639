"""Checkpoints: written so that one is always whole, read back, and checked against the run."""

import errno
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from qvlm_lightning.errors import InputError, first_line
from qvlm_lightning.files import create, sync, writing

LAST, PREVIOUS = "last.ckpt", "last.previous.ckpt"


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place, reads it back, keeps the one before it, and renames.

    Lightning's own writer goes through ``$TMPDIR`` and moves: on another file system that is a
    copy, and a disk that fills up in its middle takes the only checkpoint along. The generation
    before ``last.ckpt`` stays as ``last.previous.ckpt``, for a file that is damaged later.
    """

    def __init__(self) -> None:
        self._mine: Path | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: as Lightning collects it.
            path: the file; a local one.
            storage_options: none are known.

        Raises:
            InputError: the system refuses, or what was read back is not what was written; the
                file is what it was.
        """
        if storage_options is not None:
            raise TypeError("CheckpointFiles takes no storage_options")
        place, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        with writing(place) as scratch:
            with create(scratch) as file:
                file.write(buffer.getbuffer())
            sync(scratch)
            if scratch.read_bytes() != buffer.getbuffer():
                raise OSError(errno.EIO, "what was read back is not what was written")
            if place.name == LAST and (place == self._mine or is_whole(place)):
                _keep(place, place.with_name(PREVIOUS))
        self._mine = place


def _keep(place: Path, previous: Path) -> None:
    """Give a file a second name, in whose place it stays when the first name goes on."""
    if previous.exists() and previous.samefile(place):  # renaming over itself would do nothing
        return
    with writing(previous) as scratch:
        try:
            os.link(place, scratch)
        except OSError:  # a file system without hard links
            shutil.copyfile(place, scratch)


def is_whole(path: Path) -> bool:
    """Say whether a checkpoint can be read, to the last byte."""
    try:
        read_checkpoint(path)
    except InputError:
        return False
    return True


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint that anyone may have written: tensors and plain values only.

    Args:
        path: the file.

    Raises:
        InputError: it is missing, damaged, or no checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} has another checksum")
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise zipfile.BadZipFile("it holds no dictionary")
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        ValueError,
        EOFError,
        NotImplementedError,
    ) as error:
        raise InputError(
            f"checkpoint {str(path)!r} cannot be read ({first_line(error)}); give one of this "
            "program"
        ) from error
    return found


def latest(folder: Path) -> tuple[Path, dict[str, Any], str] | None:
    """Find the checkpoint to resume from: the last one, or the one before it where that is damaged.

    Args:
        folder: ``checkpoints`` of a run.

    Returns:
        The file, what it holds, and a note for the user (empty: nothing); ``None`` where there is
        no checkpoint at all.

    Raises:
        InputError: all that there are are damaged.
    """
    there = [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    faults: list[InputError] = []
    for path in there:
        try:
            found = read_checkpoint(path)
        except InputError as fault:
            faults.append(fault)
            continue
        note = f"{faults[0]}; resuming from the one before it, {str(path)!r}" if faults else ""
        return path, found, note.replace("; give one of this program", "")
    if faults:
        raise faults[0]
    return None


def check_checkpoint(
    checkpoint: dict[str, Any], identity: dict[str, Any], tensors: Iterable[str]
) -> None:
    """Check that a checkpoint belongs to a run.

    Args:
        checkpoint: as Lightning reads it.
        identity: plain values of the run.
        tensors: names of the quantizer tensors that the run needs.

    Raises:
        InputError: it comes from another model, scheme, seed or calibration set (names the field),
            or lacks a quantizer tensor.
    """
    stored = checkpoint.get("calibration", {}).get("identity")
    if stored is None:
        raise InputError(
            "the checkpoint is not one of a calibration; give a last.ckpt of this program"
        )
    for field, value in identity.items():
        if stored.get(field) != value:
            raise InputError(
                f"the checkpoint has {field} {_short(stored.get(field))}, this run has "
                f"{_short(value)}; resume with the same configuration or start a new run folder"
            )
    missing = {f"model.{n}" for n in tensors} - set(checkpoint["state_dict"])
    if missing:
        raise InputError(
            f"the checkpoint lacks {len(missing)} quantizer tensors, such as {min(missing)}"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Answers of an evaluation that is under way, on disk as they come.

Until the answers are whole they lie in a folder ``<name>.partial``: ``asked.json`` says what was
asked of which weights, and every process of every session has a ``<session>-<process>.jsonl`` and,
with log-probabilities, a table ``.f32`` of the same order. A session never writes to files of
another: a process that outlives its own does no harm, and what it still writes is read once.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qvlm_lightning.errors import parse_json
from qvlm_lightning.files import storage_faults, write_json

KEY = "asked.json"
_WIDTH = np.dtype("<i8")
_VALUE = np.dtype("<f4")

EvaluationKey = Mapping[str, Any]
"""What the answers of an evaluation depend on, in plain values: weights, questions, settings."""


@dataclass(frozen=True)
class Line:
    """One answer of a journal."""

    id: str
    """Id of the question."""
    text: str
    """Generated text."""
    seconds: float
    """Wall time since the session began."""
    log_probs: np.ndarray | None
    """[V] log-probabilities of the first answer token, float32, where they are kept."""


class Journal:
    """The answers so far of one evaluation.

    Args:
        folder: ``predictions/<name>.partial``; every process must see it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, key: EvaluationKey) -> tuple[int, str]:
        """Continue an interrupted evaluation, or start afresh if it was asked something else.

        Only the main process does this, before any process writes.

        Args:
            key: all of its values must agree with those of the interrupted evaluation.

        Returns:
            The number of this session, and what to tell the user (empty: nothing).
        """
        note, stored_key = "", self._stored_key()
        if self.folder.exists() and stored_key != key:
            if self._files():
                name, changed = self.folder.stem, differences(stored_key or {}, key)
                note = f"{name}: answers of an interrupted evaluation are dropped: {changed}"
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if stored_key != key:
            write_json(self.folder / KEY, key)
        return 1 + max((int(p.stem.partition("-")[0]) for p in self._files()), default=-1), note

    def texts(self) -> dict[str, str]:
        """Return question id -> text of everything that was answered."""
        texts: dict[str, str] = {}
        for path in self._files():
            for line in _lines(path):
                texts.setdefault(line.id, line.text)
        return texts

    def log_probs(self, ids: Sequence[str]) -> Tensor:
        """Return the kept log-probabilities [n, V] in the order of these questions.

        Args:
            ids: questions that were all answered.
        """
        place = {name: i for i, name in enumerate(ids)}
        table: Tensor | None = None
        missing = set(ids)
        for path in self._files():
            for line in _lines(path):
                if line.id in missing:
                    assert line.log_probs is not None, "kept for all questions or for none"
                    if table is None:
                        table = torch.empty(len(ids), len(line.log_probs))
                    table[place[line.id]] = torch.from_numpy(line.log_probs.copy())
                    missing.discard(line.id)
        assert table is not None, "no question"
        assert not missing, f"{len(missing)} questions without an answer"
        return table

    def seconds(self) -> float:
        """Return the wall time of answering: of every session that of its last answer."""
        ends: dict[str, float] = {}
        for path in self._files():
            session = path.stem.partition("-")[0]
            for line in _lines(path):
                ends[session] = max(ends.get(session, 0.0), line.seconds)
        return sum(ends.values())

    def remove(self) -> None:
        """Remove the folder; the answers have gone into their files."""
        shutil.rmtree(self.folder)

    def _stored_key(self) -> Any:
        try:
            return parse_json((self.folder / KEY).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*-*.jsonl"))


class Record:
    """What one process of one session writes.

    Args:
        journal: where to.
        session: number of the session.
        process: number of the process.
        log_probs: whether log-probabilities are kept.
    """

    def __init__(self, journal: Journal, session: int, process: int, log_probs: bool) -> None:
        path = journal.folder / f"{session:04d}-{process}.jsonl"
        self._folder = journal.folder
        with storage_faults(self._folder):
            # without a buffer: what a full disk refused would be tried again at the very end
            self._lines = path.open("xb", buffering=0)
            self._table = path.with_suffix(".f32").open("xb", buffering=0) if log_probs else None

    def add(self, ids: Sequence[str], texts: Sequence[str], log_probs: Tensor, at: float) -> None:
        """Append answers.

        Args:
            ids: the questions.
            texts: what was answered.
            log_probs: [B, V] of the first answer tokens.
            at: seconds since the session began.

        Raises:
            InputError: the system refuses to write; earlier answers stay.
        """
        rows = zip(ids, texts, strict=True)
        lines = [{"id": name, "text": text, "seconds": round(at, 3)} for name, text in rows]
        with storage_faults(self._folder):
            if self._table is not None:
                # first: an answer counts once its line is there
                width = np.array(log_probs.shape[1], _WIDTH).tobytes()
                head = width if self._table.tell() == 0 else b""
                _append(self._table, head + log_probs.cpu().numpy().astype(_VALUE).tobytes())
            _append(self._lines, "".join(f"{json.dumps(line)}\n" for line in lines).encode())

    def close(self) -> None:
        """Close the files, synced: answers that are not stored yet lie nowhere else."""
        with storage_faults(self._folder):
            for file in (self._lines, self._table):
                if file is not None:
                    with file:
                        os.fsync(file.fileno())


def _append(file: RawIOBase, data: bytes) -> None:
    """Write all of ``data``; one write may take less than it is given."""
    view = memoryview(data)
    while len(view):
        view = view[file.write(view) or 0 :]


def differences(before: EvaluationKey, now: EvaluationKey) -> str:
    """Say in words what two evaluations were asked differently.

    Example:
        >>> differences({"mode": "lmms", "stop": []}, {"mode": "official", "stop": []})
        "mode was 'lmms', now it is 'official'"
    """
    keys = [key for key in [*now, *(before.keys() - now)] if before.get(key) != now.get(key)]
    return ", ".join(f"{k} was {before.get(k)!r}, now it is {now.get(k)!r}" for k in keys)


def _lines(path: Path) -> Iterator[Line]:
    """Yield the whole answers of a file; a process that was killed may have left half of one."""
    table = _table(path.with_suffix(".f32"))
    with path.open("rb") as file:
        for number, raw in enumerate(file):
            if not raw.endswith(b"\n") or (table is not None and number >= len(table)):
                return
            try:
                row = parse_json(raw)
            except ValueError:  # a machine that lost power may leave a block of zeros
                return
            log_probs = None if table is None else table[number]
            yield Line(row["id"], row["text"], row["seconds"], log_probs)


def _table(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    size = path.stat().st_size - _WIDTH.itemsize
    if size <= 0:
        return np.empty((0, 0), _VALUE)
    width = int(np.fromfile(path, _WIDTH, 1)[0])
    rows = size // (width * _VALUE.itemsize)
    if not rows:
        return np.empty((0, width), _VALUE)
    return np.memmap(path, _VALUE, "r", _WIDTH.itemsize, (rows, width))

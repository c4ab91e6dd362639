"""Samples as people have them at hand in a notebook: dicts, chats, files, or any mixture."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qvlm_lightning.data.chat import json_rows
from qvlm_lightning.data.image import LazyImage, inside
from qvlm_lightning.data.messages import read_exchange
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError

_ALLOW = ", or give such rows as a list, whose images may lie anywhere"
EXAMPLE = '{"image": "cat.png", "question": "What is it?", "answer": "A cat."}'
_ALLOWED = (
    "a Sample, a dict with image, question and answer, a list of chat messages, or the path of a "
    f"file of JSON lines; such as [{EXAMPLE}]"
)


def as_samples(given: Any, max_turns: int = 1) -> list[Sample]:
    """Return samples, whatever form they are given in.

    Args:
        given: the path of a file of JSON lines, or an iterable of samples, of rows as such a file
            has them (docs/your_own_data.md), or of chats, lists of messages. In rows and messages
            an image may be a path, relative to the working folder, a data URI, the bytes of a file
            or a PIL image.
        max_turns: exchanges of a chat that are read, the first ones.

    Raises:
        InputError: something is none of these, or a row cannot be read; says which one.

    Example:
        >>> as_samples([{"question": "Why?", "answer": "So."}])[0].answer
        'So.'
    """
    return _Reader(max_turns).all(given)


class _Reader:
    """Reads what is given; questions about one image file share its object.

    Args:
        max_turns: see :func:`as_samples`.
    """

    def __init__(self, max_turns: int) -> None:
        self.max_turns = max_turns
        self.images: dict[Path, LazyImage] = {}

    def all(self, given: Any) -> list[Sample]:
        """Return the samples of everything."""
        if isinstance(given, str | Path):
            return self.file(Path(given).expanduser())
        if isinstance(given, Sample | Mapping | bytes) or not isinstance(given, Iterable):
            kind = type(given).__name__
            raise InputError(f"samples is a {kind}; needed is a list, each of it {_ALLOWED}")
        found: list[Sample] = []
        for number, one in enumerate(given):
            where = f"samples[{number}]"
            if isinstance(one, str | Path):
                found += self.file(Path(one).expanduser())
            else:
                found.append(self.one(one, where, where, None))
        return found

    def file(self, path: Path) -> list[Sample]:
        """Return the samples of a file of JSON lines, or of one list."""
        if not path.is_file():
            raise InputError(
                f"samples name the file {str(path)!r}, which is none; needed is {_ALLOWED}"
            )
        unit = "entry" if path.suffix == ".json" else "line"
        return [
            self.one(row, f"{unit} {number} of {str(path)!r}", f"{path.name}:{number}", path.parent)
            for number, row in json_rows(path)
        ]

    def one(self, given: Any, where: str, name: str, folder: Path | None) -> Sample:
        """Return the sample of a row or a chat.

        Args:
            given: a sample, a row or a list of messages.
            where: its place, for messages.
            name: its id, unless it has one.
            folder: what names of image files are relative to, and may not leave; None for the
                working folder, and anywhere.
        """
        if isinstance(given, Sample):
            return given
        if isinstance(given, list | tuple) and given and all(isinstance(x, Mapping) for x in given):
            given = {"messages": list(given)}
        if not isinstance(given, Mapping):
            raise InputError(f"{where} is a {type(given).__name__}; allowed is {_ALLOWED}")
        found = read_exchange(given, where, self.max_turns)
        image = found.image
        if isinstance(image, str):
            # rows are the caller's own words, lines of a file anybody's
            path = Path(image) if folder is None else inside(folder, image, where, _ALLOW)
            image = self.images.setdefault(path, LazyImage.of(path))
        return Sample(
            id=str(given["id"]) if given.get("id") is not None else name,
            image=image,
            question=found.question,
            choices=found.choices,
            answer=found.answer,
            further=found.further,
        )

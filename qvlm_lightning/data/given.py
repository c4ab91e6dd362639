"""Samples as people have them at hand in a notebook: dicts, chats, files, or any mixture."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.data.messages import read_exchange
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError

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
    if isinstance(given, str | Path):
        return _of_file(Path(given).expanduser(), max_turns)
    if isinstance(given, Sample | Mapping | bytes) or not isinstance(given, Iterable):
        kind = type(given).__name__
        raise InputError(f"samples is a {kind}; needed is a list, each of it {_ALLOWED}")
    found: list[Sample] = []
    for number, one in enumerate(given):
        where = f"samples[{number}]"
        if isinstance(one, str | Path):
            found += _of_file(Path(one).expanduser(), max_turns)
        else:
            found.append(_sample(one, where, where, Path(), max_turns))
    return found


def _of_file(path: Path, max_turns: int) -> list[Sample]:
    from qvlm_lightning.data.chat import json_rows

    if not path.is_file():
        raise InputError(
            f"samples name the file {str(path)!r}, which is none; needed is {_ALLOWED}"
        )
    unit = "entry" if path.suffix == ".json" else "line"
    return [
        _sample(
            row,
            f"{unit} {number} of {str(path)!r}",
            f"{path.name}:{number}",
            path.parent,
            max_turns,
        )
        for number, row in json_rows(path)
    ]


def _sample(one: Any, where: str, name: str, folder: Path, max_turns: int) -> Sample:
    """Make a sample of one row or chat.

    Args:
        one: what was given.
        where: its place, for messages.
        name: its id, unless it has one.
        folder: what names of image files are relative to.
        max_turns: exchanges to read.
    """
    if isinstance(one, Sample):
        return one
    if isinstance(one, list | tuple) and one and all(isinstance(x, Mapping) for x in one):
        one = {"messages": list(one)}
    if not isinstance(one, Mapping):
        raise InputError(f"{where} is a {type(one).__name__}; allowed is {_ALLOWED}")
    found = read_exchange(one, where, max_turns)
    image = found.image
    return Sample(
        id=str(one["id"]) if one.get("id") is not None else name,
        image=LazyImage.of(folder / image) if isinstance(image, str) else image,
        question=found.question,
        choices=found.choices,
        answer=found.answer,
        further=found.further,
    )

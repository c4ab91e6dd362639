"""Files of a release: what they hold, or one sentence about what is wrong with them."""

import gzip
from pathlib import Path
from typing import Any

from qvlm_lightning.errors import InputError, parse_json


def read_text(path: Path, layout: str) -> str:
    """Read a text file, unpacked where its name ends in ``.gz``.

    Args:
        path: the file.
        layout: what should lie there, for the message.

    Raises:
        InputError: there is no such file, or it is not UTF-8 text.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"there is no file {str(path)!r}; needed is {layout}") from error
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{str(path)!r} cannot be read as text ({error})") from error


def read_json(path: Path, layout: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file, packed where its name ends in ``.gz``.
        layout: what should lie there, for the message.

    Raises:
        InputError: there is no such file, or it does not hold JSON.
    """
    try:
        return parse_json(read_text(path, layout))
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not JSON ({error})") from error


def read_json_lines(path: Path, layout: str) -> list[dict[str, Any]]:
    """Read a file that holds one JSON object per line; empty lines are skipped.

    Args:
        path: the file, packed where its name ends in ``.gz``.
        layout: what should lie there, for the message.

    Raises:
        InputError: there is no such file, or a line, named by its number, is no JSON object.
    """
    rows = []
    for number, line in enumerate(read_text(path, layout).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"line {number} of {str(path)!r} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise InputError(f"line {number} of {str(path)!r} is not a JSON object")
        rows.append(row)
    return rows

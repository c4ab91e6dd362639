"""Where the files of a release lie, with messages that tell what was expected."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qvlm_lightning.data.image import inside
from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.annotators import ANNOTATORS


def find_file(path: Path, names: Sequence[str], layout: str) -> Path:
    """Return the first of some files that lies in a folder, or the file itself if it is one.

    Args:
        path: a file, which is returned as it is, or a folder.
        names: relative names, the best first; each is also tried with ``.gz``.
        layout: what the folder should hold, for the message.

    Raises:
        InputError: nothing there.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise InputError(f"{str(path)!r} does not exist; give a file of the release, or {layout}")
    found = sibling(path, names)
    if found is None:
        raise InputError(f"folder {str(path)!r} has none of {', '.join(names)}; give {layout}")
    return found


def sibling(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of some files that lies in a folder, or None; see :func:`find_file`."""
    candidates = (folder / f"{name}{ending}" for name in names for ending in ("", ".gz"))
    return next((file for file in candidates if file.is_file()), None)


def image_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of some folders that exists, or None where no images lie."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def image_file(folder: Path, name: str | Path) -> Path:
    """Return the path of an image that a row names.

    Args:
        folder: that images lie in.
        name: the row's name of the file.

    Raises:
        InputError: the name leads out of the folder.
    """
    return inside(folder, name, "a question")


@contextmanager
def rows_of(path: Path, layout: str) -> Iterator[None]:
    """Explain a file whose rows lack what is read from them.

    Args:
        path: the file that is being read.
        layout: what was expected.

    Raises:
        InputError: inside, a row had no such column, or was of another kind.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        what = f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{str(path)!r} is of another kind ({what}); give {layout}") from error


def annotators_of(row: Mapping[str, Any], id_column: str) -> tuple[str, ...]:
    """Return the answers of a row's ten annotators, in their order.

    Args:
        row: its ``answers`` are texts, or records with an ``answer``; None where withheld.
        id_column: column that names the row in the message.

    Raises:
        InputError: not ten answers, which the rule of leaving one out is made for.
    """
    given = row.get("answers")
    if given is None:
        return ()
    if len(given) != ANNOTATORS:
        raise InputError(
            f"question {row[id_column]!r} has {len(given)} answers; it takes those of "
            f"{ANNOTATORS} annotators"
        )
    return tuple(str(x["answer"]) if isinstance(x, Mapping) else str(x) for x in given)

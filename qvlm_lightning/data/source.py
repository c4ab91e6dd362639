"""Rows of a dataset in the layout of the Hugging Face hub: a folder here, or a repository there."""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qvlm_lightning.data.image import LazyImage, inside
from qvlm_lightning.errors import InputError
from qvlm_lightning.models.offline import stored_if_unreachable

Row = dict[str, Any]

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_OTHER_WORD = {"val": "validation", "valid": "validation", "validation": "val"}
ALLOW = ", or allow_outside: true beside the path of the data"
_SHUFFLED_AT_ONCE = 1000  # rows of a stream in memory, their images encoded


@dataclass(frozen=True)
class Source:
    """Where a dataset lies."""

    path: str
    """A folder or file here, or a repository of the hub such as ``owner/name``."""
    split: str | None = None
    """Which split; the one that the data module expects by default."""
    config: str | None = None
    """Which configuration of a repository that has several."""
    revision: str | None = None
    """Branch, tag or commit of a repository; its newest by default."""
    streaming: bool = False
    """Read rows as they come instead of storing the whole repository first."""
    layout: Literal["auto", "release", "hub"] = "auto"
    """``hub`` for a folder of parquet or JSON files named by split, ``release`` for the files that
    the authors of a benchmark give out; ``auto`` takes a folder for the former if it holds parquet
    files."""

    allow_outside: bool = False
    """Whether the names of image files in rows may lead out of the folder of the data."""

    @property
    def here(self) -> Path | None:
        """The folder or file; None for a repository of the hub.

        Raises:
            InputError: there is nothing here, and the name is not one of a repository.
        """
        path = Path(self.path).expanduser()
        if path.exists():
            return path
        if self.layout == "release" or not _REPOSITORY.fullmatch(self.path):
            raise InputError(
                f"data folder {self.path!r} does not exist; give a folder, or a repository of the "
                "hub such as owner/name"
            )
        return None

    @property
    def is_release(self) -> bool:
        """Whether these are the files of a benchmark's authors, which its task reads."""
        path = self.here
        if path is None or self.layout != "auto":
            return self.layout == "release"
        files = [path] if path.is_file() else [*path.glob("*.parquet"), *path.glob("*/*.parquet")]
        return not any(file.suffix == ".parquet" for file in files)

    def __str__(self) -> str:
        named = [("config", self.config), ("split", self.split), ("revision", self.revision)]
        return " ".join([repr(self.path), *(f"{k} {v!r}" for k, v in named if v is not None)])


class Rows:
    """Rows of one split, in their order; images come as :class:`LazyImage`, equal ones as one.

    Args:
        source: where they lie, its split given.
        hint: what would serve as well, for messages.

    Raises:
        InputError: nothing that can be read lies there, or the hub cannot be reached.
    """

    def __init__(self, source: Source, hint: str = "") -> None:
        self.source, self.hint = source, hint
        with self._faults():
            self._table = _open(source)
            self._columns = _image_columns(self._table)
            self._table = _encoded(self._table, self._columns)
        self._known: dict[bytes, LazyImage] = {}

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._table.features)

    def __iter__(self) -> Iterator[Row]:
        with self._faults():
            for place, row in enumerate(self._table):
                yield self._with_images(row, place)

    def shuffled(self, seed: int) -> Iterator[Row]:
        """Yield all rows in an order that the seed decides.

        Args:
            seed: decides the order; of a stream, that within stretches of rows.
        """
        with self._faults():
            if self.source.streaming:
                stream = self._table.shuffle(seed=seed, buffer_size=_SHUFFLED_AT_ONCE)
                yield from (self._with_images(row, None) for row in stream)
                return
            order = list(range(len(self._table)))
            random.Random(seed).shuffle(order)
            for place in order:
                yield self._with_images(self._table[place], place)

    def without_images(self) -> Iterator[Row]:
        """Yield all rows with None for every image: nothing is read of them."""
        nothing = dict.fromkeys(self._columns)
        with self._faults():
            for row in self._table.remove_columns(list(self._columns)):
                yield row | nothing

    def _with_images(self, row: Row, place: int | None) -> Row:
        for name in self._columns:
            value = row[name]
            if isinstance(value, list):
                row[name] = [self._image(x, name, place, i) for i, x in enumerate(value)]
            else:
                row[name] = self._image(value, name, place, None)
        return row

    def _image(
        self, value: Any, column: str, place: int | None, number: int | None
    ) -> LazyImage | None:
        """Make an image of a cell: a path, or the bytes of a file with or without its path."""
        if value is None:
            return None
        cell: dict[str, Any] = {"bytes": None, "path": value} if isinstance(value, str) else value
        data, path = cell["bytes"], cell["path"]
        if data is None:
            folder = self.source.here
            if folder is None:
                raise InputError(
                    f"column {column!r} of {self.source} holds paths such as {path!r} instead of "
                    "images; give a folder that holds the files"
                )
            root = folder if folder.is_dir() else folder.parent
            where = f"column {column!r} of {self.source}"
            file = root / path if self.source.allow_outside else inside(root, path, where, ALLOW)
            return self._known.setdefault(str(file).encode(), LazyImage.of(file))
        key = hashlib.blake2b(data, digest_size=16).digest()
        if key not in self._known:
            name = f"{column} of row {place} of {self.source}" if path is None else path
            read = _bytes(data) if self.source.streaming else self._cell(column, place, number)
            self._known[key] = LazyImage(name, read)
        return self._known[key]

    def _cell(self, column: str, place: int | None, number: int | None) -> Callable[[], bytes]:
        """Leave the bytes on the disk, where the table is, until they are asked for."""
        table = self._table.select_columns([column])

        def read() -> bytes:
            value = table[place][column]
            return (value if number is None else value[number])["bytes"]

        return read

    @contextmanager
    def _faults(self) -> Iterator[None]:
        from datasets.exceptions import DatasetsError

        try:
            yield
        except InputError:
            raise
        except (OSError, ValueError, DatasetsError) as error:
            kind = "hub repository" if self.source.here is None else "data in"
            serves = [self.hint, "a folder of parquet files named by split"]
            raise InputError(
                f"{kind} {self.source} cannot be read ({_reason(error)}); give "
                f"{', or '.join(filter(None, serves))}"
            ) from error


def _reason(error: BaseException) -> str:
    """Say in one line what ``datasets`` says in many, or only in the cause of its error."""
    from datasets.exceptions import DatasetGenerationError

    told = (error.__cause__ or error) if isinstance(error, DatasetGenerationError) else error
    lines = str(told).strip().splitlines() or [type(told).__name__]
    ends = lines if len(lines) < 3 else [lines[0], "...", lines[-1]]
    return " ".join(line.strip() for line in ends).rstrip(".")


def _open(source: Source) -> Any:
    """Load a split under its name, or the other word for it: copies disagree about "val"."""
    split = str(source.split)
    named = split.partition("[")[0]
    try:
        return _load(source, split)
    except ValueError as error:
        if named not in _OTHER_WORD or "split" not in str(error):
            raise
        try:
            return _load(source, split.replace(named, _OTHER_WORD[named], 1))
        except ValueError:
            raise error from None


def _load(source: Source, split: str) -> Any:
    from datasets import config, load_dataset

    path = source.here
    options = {"split": split, "streaming": source.streaming}
    if path is None:
        with stored_if_unreachable(config):
            named = {"name": source.config, "revision": source.revision}
            return load_dataset(source.path, **named, **options)
    if path.is_file():
        kind = "parquet" if path.suffix == ".parquet" else "json"
        return load_dataset(kind, data_files={split: str(path)}, **options)
    return load_dataset(str(path), name=source.config, **options)


def _image_columns(table: Any) -> dict[str, Any]:
    """Return the columns of images -> their type; a column of texts counts if it is ``image``."""
    from datasets import Image, List

    found: dict[str, Any] = {}
    for name, kind in table.features.items():
        nested = isinstance(kind, List) and isinstance(kind.feature, Image)
        named = name in ("image", "images") and _holds_texts(kind)
        if isinstance(kind, Image) or nested or named:
            found[name] = kind
    return found


def _holds_texts(kind: Any) -> bool:
    inner = getattr(kind, "feature", kind)
    return getattr(inner, "dtype", None) in ("string", "large_string")


def _encoded(table: Any, columns: dict[str, Any]) -> Any:
    """Let cells hold the bytes of image files instead of pixels."""
    from datasets import Image, List

    for name, kind in columns.items():
        if isinstance(kind, Image):
            table = table.cast_column(name, Image(decode=False))
        elif isinstance(kind, List) and isinstance(kind.feature, Image):
            table = table.cast_column(name, List(Image(decode=False)))
    return table


def _bytes(data: bytes) -> Callable[[], bytes]:
    return lambda: data

"""MMBench: multiple choice, asked once per rotation of the options."""

import base64
import binascii
import csv
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from types import MappingProxyType
from typing import Any, ClassVar

from qvlm_lightning.data.image import LazyImage
from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.circular import CircularScore
from qvlm_lightning.metrics.grouped import UNPARSED
from qvlm_lightning.metrics.letters import PARSERS
from qvlm_lightning.metrics.target import WHOLE, Judgement, Target
from qvlm_lightning.tasks.base import Prompt, Question, Row, Task
from qvlm_lightning.tasks.files import read_json_lines, read_text
from qvlm_lightning.tasks.prompts import ANSWER_LETTER, lettered
from qvlm_lightning.tasks.release import rows_of

_ROTATION = 1_000_000  # index = rotation * a million + index of the question
_REFERENCE = 64  # a shorter image column names the row whose image it is


def llava(row: Row) -> str:
    r"""Write LLaVA's prompt: hint, question, options, the sentence about letters.

    Args:
        row: ``question``, ``hint``, ``choices``.

    Example:
        >>> llava({"question": "Which?", "hint": "Look.", "choices": ["a"]})
        "Look.\nWhich?\nA. a\nAnswer with the option's letter from the given choices directly."
    """
    hint = f"{row['hint']}\n" if row["hint"] else ""
    return f"{hint}{row['question']}\n{lettered(row['choices'])}\n{ANSWER_LETTER}"


class MMBench(Task):
    """MMBench; 4,377 rows of the development set are the rotations of 1,176 questions.

    Ids are the rows' ``index``. ``overall`` is circular: a question counts if all of its rotations
    are answered; ``first_pass`` looks at the first only and ``row`` at each alone.

    Args:
        mode: the parser of answers (``metrics/letters.py``).
        prompt: which prompt.
    """

    name = "mmbench"
    modes = ("letter", "llava")
    prompts: ClassVar[Mapping[str, Prompt]] = MappingProxyType({"llava": llava})
    splits = ("dev",)
    train_split = None
    layout = (
        "a folder with the release's .tsv, or a .jsonl of index, question, options (letter -> "
        "text) and answer, the split in the name where there are several"
    )

    def read(self, path: Path, split: str | None = None) -> list[Question]:
        """Read the release's table, or JSON lines.

        Args:
            path: the file, or the folder that holds it.
            split: one of :attr:`splits`; a file holds one and ignores it.

        Raises:
            InputError: nothing readable there, or a row without an answer.
        """
        split = self.split(split)
        file = self._file(path, split) if path.is_dir() else path
        table = file.suffix == ".tsv"
        rows = _table(file, self.layout) if table else read_json_lines(file, self.layout)
        images: dict[int, LazyImage] = {}
        questions = []
        for row in rows:
            missing = [k for k in ("index", "question", "answer") if _empty(row.get(k))]
            if missing:
                raise InputError(f"a row of {str(file)!r} has no {missing[0]!r}")
            index = _integer(row["index"], file)
            with rows_of(file, self.layout):
                questions.append(_question(index, row, _image(index, row, images)))
        if not questions:
            raise InputError(f"{str(file)!r} holds no questions; needed is {self.layout}")
        return questions

    def _file(self, folder: Path, split: str) -> Path:
        files = sorted([*folder.glob("*.tsv"), *folder.glob("*.jsonl")])
        if len(files) > 1:
            files = [file for file in files if split in file.stem]
        if len(files) != 1:
            raise InputError(
                f"{str(folder)!r} holds {len(files)} files that could be split {split}; needed is "
                f"{self.layout}"
            )
        return files[0]

    def from_hub(self, row: Row) -> Question:
        """Make a question of a row of ``lmms-lab/MMBench``.

        Args:
            row: the columns.
        """
        return _question(int(row["index"]), row, row.get("image"))

    def judge(self, text: str, target: Target) -> Judgement:
        """Compare the parsed letter with the expected one.

        Args:
            text: what was generated.
            target: what is expected.
        """
        parsed = PARSERS[self.mode](text, len(target.choices))
        return Judgement(WHOLE if parsed in target.answers else 0, parsed)

    def scores(
        self,
        texts: Sequence[str | None],
        targets: Sequence[Target],
        confidences: Sequence[float | None] | None = None,
    ) -> dict[str, float]:
        """Score circularly, over all and per category; also first passes and rows alone.

        Args:
            texts: one answer per target; None where none was given.
            targets: what is expected.
            confidences: not used.
        """
        metric = circular(targets)
        clusters = [t.cluster for t in targets]
        first = [t.extra["rotation"] == 0 for t in targets]
        metric.update(self.judged(texts, targets), clusters, first)
        values = {name: float(value) for name, value in metric.compute().items()}
        return values | {UNPARSED: int(metric.unparsed)}


def circular(targets: Iterable[Target]) -> CircularScore:
    """Return an empty circular metric for rows with these targets.

    Args:
        targets: all targets that will be asked.
    """
    targets = list(targets)
    groups = {t.cluster: t.groups for t in targets}
    return CircularScore(Counter(t.cluster for t in targets), groups)


def _table(file: Path, layout: str) -> Iterator[dict[str, Any]]:
    text = read_text(file, layout)
    limit = csv.field_size_limit(sys.maxsize)  # images are columns; the limit is csv's global
    try:
        yield from csv.DictReader(io.StringIO(text), delimiter="\t")
    finally:
        csv.field_size_limit(limit)


def _empty(value: object) -> bool:
    """Say whether a column holds nothing; tables went through pandas, which writes "nan"."""
    return value is None or value != value or str(value).strip().lower() in ("", "nan", "none")


def _integer(value: object, file: Path) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise InputError(f"index {value!r} in {str(file)!r} is no integer") from error


def _options(row: Row) -> tuple[str, ...]:
    options = row.get("options", row)
    found: list[str] = []
    for letter in ascii_uppercase:
        if _empty(options.get(letter)):
            break
        found.append(str(options[letter]))
    return tuple(found)


def _image(index: int, row: Row, images: dict[int, LazyImage]) -> LazyImage | None:
    """Return the image of a row, one object for all rotations; some tables refer to another row."""
    key, column = index % _ROTATION, row.get("image")
    if key not in images and isinstance(column, str) and len(column) > _REFERENCE:
        try:
            images[key] = LazyImage.of(base64.b64decode(column), f"of row {index}")
        except binascii.Error as error:
            raise InputError(f"the image of row {index} is not in base64 ({error})") from error
    elif key not in images and isinstance(column, str) and column.isdecimal():
        key = int(column) % _ROTATION
    return images.get(key)


def _question(index: int, row: Row, image: Any) -> Question:
    categories = {"category": row.get("category"), "l2": row.get("l2-category")}
    categories["l2"] = categories["l2"] or row.get("L2-category")
    choices = _options(row)
    target = Target(
        answers=(str(row["answer"]).strip(),),
        choices=choices,
        groups=tuple(f"{kind}/{name}" for kind, name in categories.items() if not _empty(name)),
        cluster=str(index % _ROTATION),
        extra={"rotation": index // _ROTATION},
    )
    hint = "" if _empty(row.get("hint")) else row["hint"]
    return Question(
        str(index), target, {"question": row["question"], "hint": hint, "choices": choices}, image
    )

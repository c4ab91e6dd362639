"""Scoring of a file of predictions."""

import inspect
import json
import math
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvlm_lightning.errors import InputError, parse_json
from qvlm_lightning.files import write_whole
from qvlm_lightning.metrics.grouped import OVERALL, UNPARSED, plain_scores
from qvlm_lightning.tasks.base import Question, Task
from qvlm_lightning.tasks.find import find_task

NAMED = 5
"""How many ids a message names."""
SHOWN = 12
"""Groups of one kind that the terminal shows; the file holds all."""


@dataclass(frozen=True)
class Prediction:
    """One line of a predictions file."""

    id: str
    """The question."""
    text: str
    """What was answered."""
    confidence: float | None = None
    """See :meth:`Task.scores`."""


@dataclass(frozen=True)
class Score:
    """What a predictions file is worth."""

    values: dict[str, Any]
    """What is written: figures by name, then what was counted."""
    missing: list[str]
    """Questions without a prediction; they count as wrong."""
    duplicate: list[str]
    """Questions with several; the first counts."""
    unknown: list[str]
    """Ids of predictions that are no question; they are left out."""


def run(options: Namespace) -> int:
    """Score a file of predictions, print a table and write the figures.

    Args:
        options: of the verb.

    Returns:
        Exit code 0.

    Raises:
        InputError: see :func:`qvlm_lightning.commands.score.main`.
    """
    if options.json is not None and (options.json.is_dir() or options.json.parent.is_file()):
        raise InputError(f"json is {str(options.json)!r}; allowed is a file, in a folder")
    task = _make(find_task(options.task), options.mode, options.option)
    predictions = read_predictions(options.predictions)
    if not options.annotations.exists():
        raise InputError(f"annotations {str(options.annotations)!r} do not exist; {task.layout}")
    questions = task.read(options.annotations, options.split)
    score = score_predictions(task, questions, predictions)
    if options.json is not None:
        text = json.dumps(plain_scores(score.values), indent=1, allow_nan=False)
        write_whole(options.json, f"{text}\n")
    for what, ids in (
        ("without a prediction, counted as wrong", score.missing),
        ("with several predictions, of which the first counts", score.duplicate),
        ("predicted that the annotations do not hold, left out", score.unknown),
    ):
        if ids:
            print(f"{len(ids):,} id{'s'[: len(ids) > 1]} {what}: {_some(ids)}", file=sys.stderr)
    _show(score.values)
    return 0


def _make(kind: type[Task], mode: str | None, options: Sequence[str]) -> Task:
    given: dict[str, Any] = {}
    taken = [name for name in inspect.signature(kind).parameters if name not in ("mode", "prompt")]
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or name not in taken:
            allowed = ", ".join(f"{known}=VALUE" for known in taken) or "none"
            raise InputError(f"option of {kind.name} is {option!r}; allowed are {allowed}")
        try:
            given[name] = parse_json(value)
        except ValueError:  # a word, not a number or a list
            given[name] = value
    return kind(mode=mode, **given)


def read_predictions(path: Path) -> list[Prediction]:
    """Read JSON lines of ``{"id": ..., "text": ...}``; other keys are left alone.

    Args:
        path: the file; empty lines are skipped.

    Raises:
        InputError: the file is missing, is not text, or a line (named by its number) is malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(
            f"predictions {str(path)!r} are not there; give a file of JSON lines"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"predictions {str(path)!r} are not UTF-8 text") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_prediction(parse_json(line)))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"line {number} of {str(path)!r} is not a prediction ({error}); needed is "
                    '{"id": "...", "text": "..."}'
                ) from error
    return found


def _prediction(row: Any) -> Prediction:
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}, not an object")
    for key, kinds in (("id", (str, int)), ("text", (str,))):
        if key not in row:
            raise ValueError(f"it has no {key!r}")
        if not isinstance(row[key], kinds) or isinstance(row[key], bool):
            raise ValueError(f"its {key!r} is a {type(row[key]).__name__}, not a string")
    confidence = row.get("confidence")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float | None):
        raise ValueError(f"its 'confidence' is a {type(confidence).__name__}, not a number")
    if confidence is not None and not abs(confidence) <= sys.float_info.max:  # nan, too
        raise ValueError(f"its 'confidence' is {confidence}, not a number")
    return Prediction(str(row["id"]), row["text"], confidence)


def score_predictions(
    task: Task, questions: Sequence[Question], predictions: Sequence[Prediction]
) -> Score:
    """Join predictions and questions by id and score them.

    The denominator is fixed: every question of the annotations counts, answered or not. Of several
    predictions for a question the first counts.

    Args:
        task: the benchmark, in the mode to score by.
        questions: all of its questions.
        predictions: in any order.

    Raises:
        InputError: no prediction belongs to any of the questions, or questions share ids, have no
            answers, or are none.
    """
    first: dict[str, Prediction] = {}
    duplicate: dict[str, None] = {}
    for prediction in predictions:
        if first.setdefault(prediction.id, prediction) is not prediction:
            duplicate[prediction.id] = None
    if not questions:
        raise InputError(f"the annotations hold no questions; {task.name} reads {task.layout}")
    # a rule may find what it compares with in `extra`
    if not any(question.target.answers or question.target.extra for question in questions):
        raise InputError(
            f"the annotations hold no answers to their {len(questions):,} questions, as those of a "
            f"test split do; {task.name} has answers for {', '.join(task.splits)}"
        )
    asked = {question.id for question in questions}
    if len(asked) < len(questions):
        raise InputError(
            f"the annotations hold {len(questions):,} questions with {len(asked):,} different ids; "
            "every question needs its own"
        )
    unknown = [name for name in first if name not in asked]
    if len(unknown) == len(first):
        what = f"the predictions are for {_some(unknown)}" if first else "there are no predictions"
        wanted = _some([question.id for question in questions])
        raise InputError(f"{what}; the {len(questions):,} questions have ids such as {wanted}")
    given = [first.get(question.id) for question in questions]
    missing = [q.id for q, p in zip(questions, given, strict=True) if p is None]
    figures = task.scores(
        [None if p is None else p.text for p in given],
        [question.target for question in questions],
        [None if p is None else p.confidence for p in given],
    )
    unparsed = int(figures.pop(UNPARSED)) - len(missing)
    values = {
        "task": task.name,
        "mode": task.rule,
        **figures,
        "n": len(questions),
        "missing": len(missing),
        "unparsed": unparsed,
        "duplicate": len(duplicate),
        "unknown": len(unknown),
    }
    return Score(values, missing, list(duplicate), unknown)


def _some(ids: Sequence[str]) -> str:
    named = ", ".join(repr(name) for name in ids[:NAMED])
    return named + (", ..." if len(ids) > NAMED else "")


def _show(values: Mapping[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    figures = {name: value for name, value in values.items() if isinstance(value, float)}
    kinds: dict[str, list[str]] = {}
    for name in figures:
        kinds.setdefault(name.rpartition("/")[0], []).append(name)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("metric")
    table.add_column("%", justify="right")
    for kind, names in kinds.items():
        if len(names) > SHOWN:
            table.add_row(escape(f"{kind}/... ({len(names)} more, see --json)"), "", style="dim")
            continue
        for name in names:
            value = "–" if math.isnan(figures[name]) else f"{figures[name]:.2f}"
            table.add_row(escape(name), value, style="bold" if name == OVERALL else None)
    print(
        f"{values['task']}, mode {values['mode']}: {values['n']:,} questions, "
        f"{values['missing']:,} missing, {values['unparsed']:,} unparsed"
    )
    Console().print(table)

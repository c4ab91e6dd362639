"""Models as tables name them: stored answers, gathered from run folders and labelled."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qvlm_lightning.errors import InputError
from qvlm_lightning.results.predictions import Predictions, stored
from qvlm_lightning.results.report import sort_key
from qvlm_lightning.results.variant import Variant, variant_title


@dataclass(frozen=True)
class Entry:
    """Answers of one model to the questions of one benchmark and split."""

    label: str
    """The model's name in tables; the same on every benchmark."""
    predictions: Predictions
    """What it answered."""
    path: str
    """Where it was given from."""


def load_entries(paths: Sequence[str]) -> list[Entry]:
    """Read stored answers and name their models by what tells them apart.

    Args:
        paths: run folders of ``eval.py``, their ``predictions`` folders, or single predictions
            without ending (``runs/eval/predictions/fp-k1``). Controls are left out.

    Returns:
        Answers in the order of the paths; within a folder full precision first.

    Raises:
        InputError: nothing is stored there, the files are damaged, or the same are given twice.
    """
    entries: list[Entry] = []
    seen: set[tuple[Path, str]] = set()
    for path in paths:
        files = _files(path)
        for folder, name in files:
            if (folder.resolve(), name) in seen:
                raise InputError(f"{path!r} holds {name!r}, which was given before; give it once")
            seen.add((folder.resolve(), name))
        predictions = [Predictions.load(folder, name) for folder, name in files]
        answers = [p for p in predictions if not p.control]
        if not answers:
            raise InputError(f"{path!r} holds answers of controls only; give those of a model")
        entries += [Entry("", p, path) for p in sorted(answers, key=sort_key)]
    return _labelled(entries)


def choose_reference(entries: Sequence[Entry], name: str | None) -> Entry:
    """Return the entry that the others are compared with.

    Args:
        entries: all answers.
        name: a label, the name of predictions, or a path as it was given; the first entry if none.

    Raises:
        InputError: there is no such entry.
    """
    if name is None:
        return entries[0]
    for entry in entries:
        if name in (entry.label, entry.predictions.name, entry.path):
            return entry
    allowed = ", ".join(dict.fromkeys(repr(entry.label) for entry in entries))
    raise InputError(f"reference is {name!r}; allowed are {allowed}")


def _files(path: str) -> list[tuple[Path, str]]:
    given = Path(path)
    if given.suffix in (".json", ".jsonl") and given.is_file():
        given = given.with_suffix("")
    if given.with_name(f"{given.name}.json").is_file() and not given.is_dir():
        return [(given.parent, given.name)]
    inside = given / "predictions"
    folder = inside if inside.is_dir() else given
    names = [name for name in stored(folder) if (folder / f"{name}.jsonl").is_file()]
    if not names:
        what = "holds no whole predictions" if Path(path).exists() else "does not exist"
        raise InputError(
            f"{path!r} {what}; give a run folder of eval.py, or predictions without their ending"
        )
    return [(folder, name) for name in names]


def _labelled(entries: list[Entry]) -> list[Entry]:
    """Name what differs between the models, and the folder where nothing else does."""
    variants = [entry.predictions.variant for entry in entries]
    quantized = [v for v in variants if not v.is_fp]
    parts: list[Callable[[Variant], str]] = []
    if len({v.model for v in variants}) > 1:
        parts.append(lambda v: v.model)
    parts.append(lambda v: variant_title(v.method, v.scheme, v.row))
    if len({v.activation_mode for v in quantized}) > 1:
        parts.append(lambda v: "" if v.is_fp else v.activation_mode)
    parts.append(lambda v: v.stress.in_brackets)
    if len({v.seed for v in quantized}) > 1:
        parts.append(lambda v: "" if v.is_fp else f"seed {v.seed}")
    labels = [" ".join(filter(None, (part(v) for part in parts))) for v in variants]
    questions = [(e.predictions.benchmark, e.predictions.split) for e in entries]
    uses = Counter(zip(labels, questions, strict=True))
    twice = {label for (label, _), count in uses.items() if count > 1}
    return [
        replace(entry, label=f"{label} [{entry.path}]" if label in twice else label)
        for entry, label in zip(entries, labels, strict=True)
    ]

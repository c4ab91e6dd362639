"""Stored answers of several models, compared question by question on each benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.entries import Entry, choose_reference
from qvlm_lightning.results.measures import Groups, own_measures, paired_measures
from qvlm_lightning.results.predictions import COLUMNS, Predictions
from qvlm_lightning.results.rows import Row


@dataclass(frozen=True)
class Comparison:
    """What several models answered on one benchmark."""

    benchmark: str
    """Its name."""
    split: str
    """Split of its questions; empty where the data names none."""
    mode: str
    """The scoring rule."""
    reference: Entry
    """The model that the others are compared with."""
    others: list[Entry]
    """The others, their questions in the order of the reference's."""
    rows: list[Row]
    """Figures of every model (see :func:`compare`)."""

    @property
    def name(self) -> str:
        """What tables call the benchmark; a split other than ``test`` is part of it."""
        name = self.benchmark or "answers"
        return name if self.split in ("", "test") else f"{name}, {self.split} split"

    @property
    def entries(self) -> list[Entry]:
        """The reference and the others."""
        return [self.reference, *self.others]

    def find(self, metric: str, model: str, group: str = OVERALL) -> Row | None:
        """Return the row of a figure, or None where there is none."""
        key = (metric, model, group)
        matches = (r for r in self.rows if (r["metric"], r["model"], r["group"]) == key)
        return next(matches, None)

    @property
    def groups(self) -> list[str]:
        """Groups of questions that have rows, without ``overall``."""
        return list(dict.fromkeys(r["group"] for r in self.rows if r["group"] != OVERALL))


def compare(entries: Sequence[Entry], reference: str | None = None) -> list[Comparison]:
    """Compare models on every benchmark that they answered.

    ``score``, ``difference``, ``agreement``, ``same_token`` and ``parse_failures`` are percent,
    ``kl`` is nats at the first answer token. Scores that are right or wrong, and rates, have
    Wilson's interval; scores with points in between, means and differences that of the bootstrap
    over questions. A ``difference`` also has ``p_value`` (McNemar's mid-p), ``won`` and ``lost``.
    Where questions count only together (a cluster), the worst of them is the score of all and the
    cluster is what is resampled, compared and counted as ``n``.

    Args:
        entries: answers of models, in the order of the tables.
        reference: label, name or path of the one to compare with; the first by default.

    Returns:
        One comparison per benchmark and split; one that the reference did not answer is compared
        with the first model that did.

    Raises:
        InputError: no such reference; answers to different questions, or scored by different rules.
    """
    chosen = choose_reference(entries, reference)
    benchmarks: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        answered = entry.predictions
        benchmarks.setdefault((answered.benchmark, answered.split), []).append(entry)
    comparisons = []
    for members in benchmarks.values():
        first = next((e for e in members if e.label == chosen.label), members[0])
        others = [_aligned(e, first) for e in members if e is not first]
        comparisons.append(_compare(first, others))
    return comparisons


def _compare(reference: Entry, others: list[Entry]) -> Comparison:
    first = reference.predictions
    rows = []
    for entry in (reference, *others):
        head = {
            "benchmark": first.benchmark,
            "split": first.split,
            "mode": first.mode,
            "model": entry.label,
            "reference": reference.label,
        }
        answered = entry.predictions
        groups = _groups(answered)
        measures = [*own_measures(answered, groups)]
        if entry is not reference:
            measures += paired_measures(answered, first, groups)
        rows += [head | {"group": group} | row for group, row in measures]
    return Comparison(first.benchmark, first.split, first.mode, reference, others, rows)


def _groups(answered: Predictions) -> Groups:
    """Return all questions, and each group with the places of its questions."""
    members: dict[str, list[int]] = {}
    for place, names in enumerate(answered.groups):
        for name in names:
            members.setdefault(name, []).append(place)
    everything = (OVERALL, np.arange(len(answered.ids)))
    return [everything, *((name, np.array(members[name])) for name in sorted(members))]


def _aligned(entry: Entry, reference: Entry) -> Entry:
    """Bring an entry's questions into the order of the reference's."""
    mine, theirs = entry.predictions, reference.predictions
    if mine.mode != theirs.mode:
        raise InputError(
            f"{mine.benchmark} was scored by {mine.mode!r} for {entry.label!r} and by "
            f"{theirs.mode!r} for {reference.label!r}; evaluate both in one mode"
        )
    place = {name: number for number, name in enumerate(mine.ids)}
    if len(mine.ids) != len(theirs.ids) or place.keys() != set(theirs.ids):
        raise InputError(
            f"{mine.benchmark}: {entry.label!r} answered {len(mine.ids):,} questions and "
            f"{reference.label!r} {len(theirs.ids):,}, {len(place.keys() & set(theirs.ids)):,} of "
            "them the same; evaluate both on the same data"
        )
    order = [place[name] for name in theirs.ids]
    if [mine.answers[i] for i in order] != theirs.answers:
        raise InputError(
            f"{mine.benchmark}: {entry.label!r} and {reference.label!r} expected other answers to "
            "the same questions; evaluate both on the same data"
        )
    if mine.ids == theirs.ids:
        return entry
    moved: dict[str, Any] = {
        column: [getattr(mine, column)[i] for i in order] for column in COLUMNS.values()
    }
    if mine.log_probs is not None:
        moved["log_probs"] = mine.log_probs[order]
    # the digest of the questions is one of their order, too
    moved["asked"] = {key: value for key, value in mine.asked.items() if key != "questions"}
    return replace(entry, predictions=replace(mine, **moved))

"""Stored answers of several models, compared question by question on each benchmark."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.divergence import answer_kl
from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.entries import Entry, choose_reference
from qvlm_lightning.results.predictions import COLUMNS, Predictions
from qvlm_lightning.results.rows import (
    Row,
    difference,
    figure,
    mean,
    rate,
    right_or_wrong,
    score,
    units,
)

_PART = 512


@dataclass(frozen=True)
class Comparison:
    """What several models answered on one benchmark."""

    benchmark: str
    """Its name."""
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
        """What tables call the benchmark."""
        return self.benchmark or "answers"

    @property
    def entries(self) -> list[Entry]:
        """The reference and the others."""
        return [self.reference, *self.others]

    def find(self, metric: str, model: str, group: str = OVERALL) -> Row | None:
        """Return the row of a figure, or None where there is none."""
        key = (metric, model, group)
        found = (r for r in self.rows if (r["metric"], r["model"], r["group"]) == key)
        return next(found, None)

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
        One comparison per benchmark; a benchmark that the reference did not answer is compared
        with the first model that did.

    Raises:
        InputError: no such reference; answers to different questions, or scored by different rules.
    """
    chosen = choose_reference(entries, reference)
    benchmarks = dict.fromkeys(entry.predictions.benchmark for entry in entries)
    made = []
    for benchmark in benchmarks:
        members = [e for e in entries if e.predictions.benchmark == benchmark]
        first = next((e for e in members if e.label == chosen.label), members[0])
        others = [_aligned(e, first) for e in members if e is not first]
        made.append(_compare(first, others))
    return made


def _compare(reference: Entry, others: list[Entry]) -> Comparison:
    first = reference.predictions
    rows = []
    for entry in (reference, *others):
        head = {
            "benchmark": first.benchmark,
            "mode": first.mode,
            "model": entry.label,
            "reference": reference.label,
        }
        found = [*_own(entry.predictions)]
        if entry is not reference:
            found += [*_paired(entry.predictions, first)]
        rows += [head | row for row in found]
    return Comparison(first.benchmark, first.mode, reference, others, rows)


def _own(answered: Predictions) -> Iterator[Row]:
    points = np.array(answered.points)
    failed = np.array([parsed is None for parsed in answered.parsed])
    for group, places in _places(answered):
        counted = units(points, answered.clusters, places)
        yield _of(group, score("score", counted, right_or_wrong(counted)))
        yield _of(group, rate("parse_failures", failed[places]))
    yield _of(OVERALL, figure("seconds", answered.seconds, None, len(answered.ids)))


def _paired(answered: Predictions, reference: Predictions) -> Iterator[Row]:
    mine, theirs = np.array(answered.points), np.array(reference.points)
    pairs = zip(answered.parsed, reference.parsed, strict=True)
    same = np.array([a == b for a, b in pairs])
    for group, places in _places(answered):
        counted, other = (units(x, answered.clusters, places) for x in (mine, theirs))
        yield _of(group, difference("difference", counted, other))
        yield _of(group, rate("agreement", same[places]))
    # log-probabilities of models with other weights are over other vocabularies, or mean nothing
    if answered.log_probs is None or reference.log_probs is None or answered.base != reference.base:
        return
    if "prompt" in asked_otherwise(answered, reference):
        return
    # in parts: in double precision a whole set times a whole vocabulary is gigabytes
    parts = zip(reference.log_probs.split(_PART), answered.log_probs.split(_PART), strict=True)
    divergence = torch.cat([answer_kl(*part) for part in parts]).numpy()
    token = (reference.log_probs.argmax(-1) == answered.log_probs.argmax(-1)).numpy()
    for group, places in _places(answered):
        yield _of(group, mean("kl", divergence[places]))
        yield _of(group, rate("same_token", token[places]))


def asked_otherwise(answered: Predictions, reference: Predictions) -> list[str]:
    """Say what two models were asked differently, as far as it is known.

    Args:
        answered: answers of one.
        reference: answers of the other, to the same questions. Models of other weights have prompts
            of their own.
    """
    names = {"max_new_tokens": "max_new_tokens", "stop": "stop strings"}
    if answered.base == reference.base:
        names = {"questions": "prompt", **names}
    pairs = {
        name: (answered.asked.get(key), reference.asked.get(key)) for key, name in names.items()
    }
    return [name for name, (a, b) in pairs.items() if a is not None and b is not None and a != b]


def _places(answered: Predictions) -> Iterator[tuple[str, np.ndarray]]:
    """Yield all questions, and each group with the places of its questions."""
    yield OVERALL, np.arange(len(answered.ids))
    found: dict[str, list[int]] = {}
    for place, names in enumerate(answered.groups):
        for name in names:
            found.setdefault(name, []).append(place)
    for name in sorted(found):
        yield name, np.array(found[name])


def _of(group: str, row: Row) -> Row:
    return {"group": group} | row


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

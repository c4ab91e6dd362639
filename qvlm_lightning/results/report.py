"""From stored answers to the rows of ``results.json``."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qvlm_lightning.errors import InputError
from qvlm_lightning.metrics.divergence import AnswerKL, answer_kl
from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.metrics.intervals import bootstrap_interval
from qvlm_lightning.metrics.target import WHOLE
from qvlm_lightning.results.predictions import Predictions, file_name, stored, write_whole
from qvlm_lightning.results.rows import Row as Row
from qvlm_lightning.results.rows import (
    difference,
    figure,
    mean,
    rate,
    right_or_wrong,
    score,
    units,
)

Known = Mapping[str, Predictions]

METHODS = ("fp", "rtn", "sequential", "cdm", "veo", "qvlm")
"""Order of the rows; other methods come after them."""


def load_answers(*folders: Path) -> dict[str, Predictions]:
    """Read all whole predictions of some folders.

    Args:
        folders: ``predictions`` folders of runs of one model.

    Returns:
        Name -> predictions, full precision first, then by scheme and in the order of METHODS.
    """
    names = [(folder, name) for folder in folders for name in stored(folder)]
    found = [Predictions.load(folder, name) for folder, name in names]
    found.sort(key=sort_key)
    return {predictions.name: predictions for predictions in found}


def sort_key(predictions: Predictions) -> tuple[float, bool, str, int, str]:
    """Put full precision first, then by scheme and in the order of METHODS."""
    variant = predictions.variant
    rank = METHODS.index(variant.method) if variant.method in METHODS else len(METHODS)
    # as it was loaded before what it was cast to
    scheme = "" if variant.scheme == "fp" else variant.scheme
    return variant.outlier_scale, not variant.is_fp, scheme, rank, predictions.name


def report_rows(known: Known) -> list[Row]:
    """Compute the rows of all variants (see :func:`variant_rows`)."""
    return [row for p in known.values() if not p.control for row in variant_rows(p, known)]


def variant_rows(answered: Predictions, known: Known) -> list[Row]:
    """Compute the rows of one variant.

    Accuracy, agreement, parse failures and differences in accuracy are percent, ``kl`` is nats at
    the answer token. Accuracy is the mean of the points that the benchmark's rule gives, question
    by question; of questions that count only together (a cluster), the worst is that of all, and
    clusters are what is counted. Rates have Wilson's interval, means and paired differences the
    bootstrap's; a difference in accuracy also has McNemar's mid-p as ``p_value``.

    Args:
        answered: the variant's answers.
        known: all stored answers, among them full precision, round-to-nearest and the controls.

    Returns:
        Rows with ``model, method, scheme, activation_mode, outlier_scale, seed, stress, task,
        metric, value, ci_low, ci_high, n``; ``task`` is ``overall`` or a family of questions.

    Raises:
        InputError: the variant and what it is compared with answered other questions, or come
            from other full-precision weights.
    """
    rows = [*_own(answered)]
    variant = answered.variant
    if variant.is_fp:
        for control in ("blind", "shuffled"):
            control_answers = known.get(file_name(variant, control))
            if control_answers is not None:
                rows += _accuracy(control_answers, f"accuracy_{control}")
    else:
        reference = known.get(variant.reference.name)
        rounded = known.get(replace(variant, method="rtn").name)
        if reference is not None:
            rows += [*_against_fp(answered, _comparable(reference, answered))]
        if rounded is not None and rounded is not answered:
            rows += [*_against_rtn(answered, _comparable(rounded, answered), reference)]
    head = {
        "model": variant.model,
        "method": variant.method,
        "scheme": variant.scheme,
        "activation_mode": variant.activation_mode,
        "outlier_scale": variant.outlier_scale,
        "seed": variant.seed,
        "stress": variant.outlier_scale > 1,
    }
    return [head | row for row in rows]


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Write ``results.json``, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    write_whole(path, f"[\n{lines}\n]\n")


def _own(answered: Predictions) -> Iterator[Row]:
    yield from _accuracy(answered, "accuracy")
    unread = np.array([parsed is None for parsed in answered.parsed])
    yield from _rates(answered, unread, "parse_failures")
    yield _of(OVERALL, figure("seconds", answered.seconds, None, len(answered.ids)))


def _accuracy(answered: Predictions, name: str) -> Iterator[Row]:
    points = np.array(answered.points)
    for task, places in _tasks(answered):
        counted = units(points, answered.clusters, places)
        yield _of(task, score(name, counted, right_or_wrong(points)))


def _families(answered: Predictions) -> list[str]:
    return list(dict.fromkeys(answered.families))


def _rates(answered: Predictions, hits: np.ndarray, name: str) -> Iterator[Row]:
    for task, places in _tasks(answered):
        yield _of(task, rate(name, hits[places]))


def _against_fp(answered: Predictions, reference: Predictions) -> Iterator[Row]:
    families = _families(answered)
    pairs = zip(answered.parsed, reference.parsed, strict=True)
    same = np.array([mine == theirs for mine, theirs in pairs])
    yield from _rates(answered, same, "agreement")
    yield from _differences(answered, reference, "accuracy_minus_fp")
    if answered.log_probs is not None and reference.log_probs is not None:
        metric = AnswerKL(families)
        metric.update(reference.log_probs, answered.log_probs, answered.families)
        means = metric.compute()
        values = answer_kl(reference.log_probs, answered.log_probs).numpy()
        for task, places in _tasks(answered):
            interval = bootstrap_interval(values[places])
            yield _of(task, figure("kl", float(means[task]), interval, len(places)))


def _against_rtn(
    answered: Predictions, rounded: Predictions, reference: Predictions | None
) -> Iterator[Row]:
    yield from _differences(answered, rounded, "accuracy_minus_rtn")
    full = None if reference is None else reference.log_probs
    if full is None or answered.log_probs is None or rounded.log_probs is None:
        return
    gap = answer_kl(full, answered.log_probs) - answer_kl(full, rounded.log_probs)
    for task, places in _tasks(answered):
        yield _of(task, mean("kl_minus_rtn", gap.numpy()[places]))


def _differences(answered: Predictions, other: Predictions, name: str) -> Iterator[Row]:
    points, others = np.array(answered.points), np.array(other.points)
    whole = WHOLE
    if right_or_wrong(points) and right_or_wrong(others):
        points, others, whole = points // WHOLE, others // WHOLE, 1
    for task, places in _tasks(answered):
        mine, theirs = (units(x, answered.clusters, places) for x in (points, others))
        yield _of(task, difference(name, mine, theirs, whole))


def _of(task: str, row: Row) -> Row:
    return {"task": task} | row


def _tasks(answered: Predictions) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each task with the places of its questions."""
    families = np.array(answered.families)
    yield OVERALL, np.arange(len(families))
    for name in _families(answered):
        yield name, np.flatnonzero(families == name)


def _comparable(other: Predictions, answered: Predictions) -> Predictions:
    if other.ids != answered.ids:
        raise InputError(
            f"{answered.name!r} answered {len(answered.ids)} questions and {other.name!r} "
            f"{len(other.ids)}, not the same ones; evaluate both on the same data"
        )
    if other.base != answered.base:
        raise InputError(
            f"{answered.name!r} and {other.name!r} come from different full-precision weights; "
            "evaluate both again"
        )
    return other

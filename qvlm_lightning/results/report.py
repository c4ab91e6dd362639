"""Rows of ``results.json``, computed from stored answers."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qvlm_lightning.errors import InputError
from qvlm_lightning.files import write_whole
from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.means import seed_means
from qvlm_lightning.results.measures import (
    Groups,
    difference_measures,
    divergences,
    other_settings,
    own_measures,
    paired_measures,
    score_measures,
)
from qvlm_lightning.results.predictions import Predictions, search_facts, stored
from qvlm_lightning.results.rows import Row as Row
from qvlm_lightning.results.rows import mean
from qvlm_lightning.results.stress import Stress
from qvlm_lightning.results.variant import Control, file_name

Known = Mapping[str, Predictions]

CONTROLS: tuple[Control, ...] = ("blind", "shuffled")
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
    answers = [Predictions.load(folder, name) for folder, name in names]
    answers.sort(key=sort_key)
    return {predictions.name: predictions for predictions in answers}


def sort_key(predictions: Predictions) -> tuple[str, Stress, bool, str, int, str]:
    """Order by split, full precision first, then by scheme and in the order of METHODS."""
    variant = predictions.variant
    rank = METHODS.index(variant.method) if variant.method in METHODS else len(METHODS)
    # as it was loaded before what it was cast to
    scheme = "" if variant.scheme == "fp" else variant.scheme
    return predictions.split, variant.stress, not variant.is_fp, scheme, rank, predictions.name


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
        Rows with ``model, variant, method, scheme, activation_mode, outlier_scale, sink_scale,
        seed, stress, split``, then what the artifact says of its search, ``objective, candidates,
        layer_forwards, search_seconds`` (None where it does not), then ``task, metric, value,
        ci_low, ci_high, n``; ``variant`` is the name of the row, ``task`` is ``overall`` or a
        family of questions.

    Differences are left out where the other was asked with another prompt or other settings.

    Raises:
        InputError: the variant and what it is compared with answered other questions, or come
            from other full-precision weights.
    """
    groups, variant = _tasks(answered), answered.variant
    measures = [*_renamed(own_measures(answered, groups))]
    if variant.is_fp:
        for control in CONTROLS:
            guessed = known.get(file_name(variant, control, answered.split))
            if guessed is not None and not other_settings(guessed, answered):
                scores = score_measures(guessed, _tasks(guessed))
                measures += [(t, row | {"metric": f"accuracy_{control}"}) for t, row in scores]
    else:
        reference = known.get(file_name(variant.reference, split=answered.split))
        rounded = _rounded(answered, known)
        if reference is not None and not other_settings(answered, reference):
            paired = paired_measures(answered, _comparable(reference, answered), groups)
            measures += _renamed(paired, "accuracy_minus_fp")
        alike = rounded is not None and not other_settings(answered, rounded)
        if rounded is not None and rounded.name != answered.name and alike:
            rounded = _comparable(rounded, answered)
            measures += _against_rtn(answered, rounded, reference, groups)
    head = row_head(answered)
    return [head | {"task": task} | row for task, row in measures]


def asked_differently(known: Known) -> list[str]:
    """Return a sentence for every variant and control that was not asked what full precision was:
    other questions, another prompt, other stop strings or another longest answer. Its answers are
    not compared with those of full precision.

    Args:
        known: all stored answers.
    """
    notes = []
    for answered in known.values():
        reference = known.get(file_name(answered.variant.reference, split=answered.split))
        if reference is None or reference is answered:
            continue
        if changed := other_settings(answered, reference):
            same = answered.control or answered.ids == reference.ids
            what = [f"another {x}" if same or x != "prompt" else "other questions" for x in changed]
            notes.append(
                f"{answered.name} was asked with {' and '.join(what)} than full precision: the two "
                "are not compared; evaluate it again"
            )
    return notes


def row_head(answered: Predictions) -> Row:
    """Return what every row of a variant says of whose it is (see :func:`variant_rows`).

    Args:
        answered: the variant's answers.
    """
    variant = answered.variant
    return {
        "model": variant.model,
        "variant": variant.row,
        "method": variant.method,
        "scheme": variant.scheme,
        "activation_mode": variant.activation_mode,
        **variant.stress._asdict(),
        "seed": variant.seed,
        "stress": bool(variant.stress),
        "split": answered.split,
        **(search_facts({}) | dict(answered.search)),
    }


def write_results(path: Path, rows: Sequence[Row], steps: Sequence[Row] = ()) -> None:
    """Write ``results.json``, as a whole or not at all: ``rows``, their ``means`` and ``steps``.

    Args:
        path: the file.
        rows: see :func:`variant_rows`; for the means over seeds
            :func:`~qvlm_lightning.results.means.seed_means`.
        steps: see :func:`~qvlm_lightning.results.steps.step_rows`.
    """
    lists = {"rows": rows, "means": seed_means(rows), "steps": steps}
    body = ",\n".join(f'"{name}": {_lines(listed)}' for name, listed in lists.items())
    write_whole(path, f"{{\n{body}\n}}\n")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a list of rows as JSON, as a whole or not at all."""
    write_whole(path, f"{_lines(rows)}\n")


def _lines(rows: Sequence[Row]) -> str:
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    return f"[\n{lines}\n]"


def _against_rtn(
    answered: Predictions, rounded: Predictions, reference: Predictions | None, groups: Groups
) -> Iterator[tuple[str, Row]]:
    yield from _renamed(difference_measures(answered, rounded, groups), "accuracy_minus_rtn")
    if reference is None:
        return
    mine, theirs = (divergences(p, reference) for p in (answered, rounded))
    if mine is not None and theirs is not None:
        for task, places in groups:
            yield task, mean("kl_minus_rtn", (mine - theirs)[places])


def _renamed(
    measures: Iterable[tuple[str, Row]], difference: str = "difference"
) -> Iterator[tuple[str, Row]]:
    """Name measures as ``results.json`` does."""
    names = {"score": "accuracy", "difference": difference}
    for task, row in measures:
        yield task, row | {"metric": names.get(row["metric"], row["metric"])}


def _tasks(answered: Predictions) -> Groups:
    """Return all questions, and each family of questions with their places; questions without a
    family are in none.
    """
    families = np.array(answered.families)
    names = dict.fromkeys(name for name in answered.families if name)
    everything = (OVERALL, np.arange(len(families)))
    return [everything, *((name, np.flatnonzero(families == name)) for name in names)]


def _rounded(answered: Predictions, known: Known) -> Predictions | None:
    """Return what round-to-nearest of the same scheme, mode, scale and seed answered."""
    wanted = replace(answered.variant, method="rtn", label="")
    alike = {
        p.variant.label: p
        for p in known.values()
        if not p.control and p.split == answered.split and replace(p.variant, label="") == wanted
    }
    # several rows of an ablation may start from rounding: the one without a name of its own counts
    only = next(iter(alike.values())) if len(alike) == 1 else None
    return alike.get("", only)


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

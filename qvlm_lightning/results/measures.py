"""Rows of one model's answers, and of two models' answers to the same questions.

Both ``results.json`` and ``compare.json`` are made of them. A measure is computed for groups of
questions: pairs of a name and the places of the questions.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from qvlm_lightning.metrics.divergence import answer_kl
from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.results.predictions import Predictions
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

Groups = Sequence[tuple[str, np.ndarray]]
_PART = 512


def own_measures(answered: Predictions, groups: Groups) -> Iterator[tuple[str, Row]]:
    """Measure one model: ``score`` and ``parse_failures`` per group, ``seconds`` over all.

    Args:
        answered: its answers.
        groups: groups of its questions.

    Yields:
        Name of the group, and the row.
    """
    yield from score_measures(answered, groups)
    failed = np.array([parsed is None for parsed in answered.parsed])
    for name, places in groups:
        yield name, rate("parse_failures", failed[places])
    yield OVERALL, figure("seconds", answered.seconds, None, len(answered.ids))


def score_measures(answered: Predictions, groups: Groups) -> Iterator[tuple[str, Row]]:
    """Measure the ``score`` of one model; see :func:`own_measures`."""
    points = np.array(answered.points)
    binary = right_or_wrong(points)
    for name, places in groups:
        yield name, score("score", units(points, answered.clusters, places), binary)


def paired_measures(
    answered: Predictions, reference: Predictions, groups: Groups
) -> Iterator[tuple[str, Row]]:
    """Measure a model against another: ``difference`` in the score and ``agreement`` per group, and
    ``kl`` and ``same_token`` where both log-probabilities are of the same weights and prompts.

    Args:
        answered: the model's answers.
        reference: the other's answers to the same questions in the same order.
        groups: groups of these questions.

    Yields:
        Name of the group, and the row.
    """
    pairs = zip(answered.parsed, reference.parsed, strict=True)
    same_answer = np.array([mine == theirs for mine, theirs in pairs])
    yield from difference_measures(answered, reference, groups)
    for name, places in groups:
        yield name, rate("agreement", same_answer[places])
    divergence = divergences(answered, reference)
    if divergence is None:
        return
    assert answered.log_probs is not None
    assert reference.log_probs is not None
    same_token = (reference.log_probs.argmax(-1) == answered.log_probs.argmax(-1)).numpy()
    for name, places in groups:
        yield name, mean("kl", divergence[places])
    for name, places in groups:
        yield name, rate("same_token", same_token[places])


def difference_measures(
    answered: Predictions, reference: Predictions, groups: Groups
) -> Iterator[tuple[str, Row]]:
    """Measure the ``difference`` in the score alone; see :func:`paired_measures`."""
    mine, theirs = np.array(answered.points), np.array(reference.points)
    for name, places in groups:
        counted, others = (units(x, answered.clusters, places) for x in (mine, theirs))
        yield name, difference("difference", counted, others)


def divergences(answered: Predictions, reference: Predictions) -> np.ndarray | None:
    """Return the KL divergence from the reference at the first answer token of each question, nats.

    Args:
        answered: a model's answers.
        reference: another's answers to the same questions in the same order.

    Returns:
        One number per question; None where log-probabilities were not kept, or are those of other
        weights or prompts and mean nothing together.
    """
    if answered.log_probs is None or reference.log_probs is None or answered.base != reference.base:
        return None
    if "prompt" in other_settings(answered, reference):
        return None
    # in parts: in double precision a whole set times a whole vocabulary is gigabytes
    parts = zip(reference.log_probs.split(_PART), answered.log_probs.split(_PART), strict=True)
    return torch.cat([answer_kl(*part) for part in parts]).numpy()


def other_settings(answered: Predictions, reference: Predictions) -> list[str]:
    """Name what two models were asked differently, as far as it is known.

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

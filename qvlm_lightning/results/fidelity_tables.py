"""Rows and table of how far each variant's text is from full precision's."""

from collections.abc import Sequence

import numpy as np

from qvlm_lightning.results.fidelity import Fidelity
from qvlm_lightning.results.render import NONE, Grid, Group, cell, groups, nats, points
from qvlm_lightning.results.rows import Row, figure, mean, rate

PERPLEXITY = "perplexity"
NOTE = (
    "Divergence from full precision at every text token, nats. Answers: greedy, compared with full "
    "precision's token by token; tokens before: equal ones at the start, where an answer differs. "
    "95 % intervals over prompts in brackets; those of the passage's tokens would not be "
    "independent."
)


def fidelity_rows(fidelity: Fidelity) -> list[Row]:
    """Return the rows of a variant's fidelity.

    Args:
        fidelity: how far its text is from full precision's.

    Returns:
        Rows of :mod:`~qvlm_lightning.results.rows`: ``text_kl_prompts``
        (nats, a mean over prompts of the mean over their tokens), ``same_tokens`` and
        ``same_answers`` (percent), ``tokens_before`` (a mean over the answers that differ, where
        any does), ``text_kl_passage`` and ``perplexity``.
    """
    differ = [place for place in fidelity.first_differences if place is not None]
    return [
        mean("text_kl_prompts", np.array(fidelity.kl)),
        mean("same_tokens", 100 * np.array(fidelity.same_tokens)),
        rate("same_answers", np.array([place is None for place in fidelity.first_differences])),
        *([mean("tokens_before", np.array(differ, dtype=float))] if differ else []),
        figure("text_kl_passage", fidelity.passage_kl, None, fidelity.passage_tokens),
        figure(PERPLEXITY, fidelity.perplexity, None, fidelity.passage_tokens - 1),
    ]


def fidelity_grids(rows: Sequence[Row]) -> list[Grid]:
    """Lay out the fidelity of all variants in one table; in none where it was not measured.

    Args:
        rows: rows of ``results.json``.
    """
    variants = [group for group in groups(rows) if group.find(PERPLEXITY)]
    if not variants:
        return []
    header = ["variant", "KL prompts", "KL passage", "perplexity", "same answers %"]
    header += ["same tokens %", "tokens before", "prompts", "calibration, s"]
    return [Grid("Text fidelity", header, [_line(group) for group in variants], NOTE)]


def _line(group: Group) -> list[str]:
    prompts = group.find("same_answers")
    return [
        group.label,
        cell(group.find("text_kl_prompts"), nats),
        cell(group.find("text_kl_passage"), nats),
        cell(group.find(PERPLEXITY), _two),
        cell(prompts, points),
        cell(group.find("same_tokens"), points, interval=False),
        cell(group.find("tokens_before"), points, interval=False),
        f"{prompts[0]['n']:,}" if prompts else NONE,
        cell(group.find("calibration_seconds"), points, interval=False),
    ]


def _two(value: float) -> str:
    return f"{value:,.2f}"

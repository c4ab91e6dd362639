"""How long the table of the joined model will take here: a short pilot times what rows cost."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from qvlm_lightning.commands._table_plan import TablePlan
from qvlm_lightning.commands._table_run import TableRun

PILOT = 8, 64
"""Texts and tokens that the pilot reads in full precision."""
CALIBRATION: Mapping[str, int] = {
    "rtn": 10_000,
    "mse": 11_000,
    "sequential": 14_000,
    "cdm": 85_000,
}
QUESTION, PHOTOGRAPH, PASSAGE = 30, 210, 800
"""What a calibration of 32 pairs, a question, a photograph and the passage cost: as many tokens as
full precision reads in the same CPU seconds (5.1 ms per token, one core shared with other work,
AMD EPYC, 2026-11-28; cdm extrapolated from a third of its blocks)."""


@torch.no_grad()
def seconds_per_token(model: Any, processes: int = 1) -> float:
    """Return how long the model takes to read a token of a batch, in seconds.

    Args:
        model: in full precision.
        processes: that will share the cores; it reads with the threads of one of them.
    """
    ids = torch.arange(PILOT[0] * PILOT[1]).reshape(PILOT) % model.config.text_config.vocab_size
    model(input_ids=ids[:1, :8])  # the first call prepares what the others find
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // processes))
    began = time.monotonic()
    model(input_ids=ids)
    seconds = (time.monotonic() - began) / ids.numel()
    torch.set_num_threads(threads)
    return seconds


def tokens_left(run: TableRun) -> int:
    """Return what the rows that are not finished cost, in tokens that full precision reads.

    A method that is not known counts as the dearest one; a row counts until it is calibrated.

    Args:
        run: of a table.
    """
    dearest = max(CALIBRATION.values())
    left = [c for c in run.calibrations if not c.finished]
    tokens = sum(CALIBRATION.get(c.variant.method, dearest) for c in left)
    full = any(run.results_folder.glob("*/predictions/fp-*.json"))
    # full precision also answers about shuffled pictures, and stores what others are compared with
    evaluations = len(left) + (0 if full else 2)
    return tokens + evaluations * _evaluation(run.plan)


def _evaluation(plan: TablePlan) -> int:
    texts = 0 if plan.fidelity is None else PHOTOGRAPH * plan.fidelity.count + PASSAGE
    return QUESTION * plan.questions + texts

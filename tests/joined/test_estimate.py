from types import SimpleNamespace

import pytest
import torch

from tests.models.small.llava import llava_dinov2
from tools.joined import estimate


@pytest.fixture
def run(tmp_path) -> SimpleNamespace:
    """A table of which one row of three is calibrated, of 10 questions and 4 photographs."""
    variants = [SimpleNamespace(method=name) for name in ("rtn", "sequential", "unknown")]
    finished = (True, False, False)
    pairs = zip(variants, finished, strict=True)
    return SimpleNamespace(
        calibrations=[SimpleNamespace(variant=v, finished=done) for v, done in pairs],
        plan=SimpleNamespace(questions=10, fidelity=SimpleNamespace(count=4)),
        results_folder=tmp_path,
    )


def test_what_is_left_is_calibrated_and_evaluated(run, tmp_path):
    known = estimate.CALIBRATION
    each = 10 * estimate.QUESTION + 4 * estimate.PHOTOGRAPH + estimate.PASSAGE
    rows = known["sequential"] + max(known.values()) + 2 * each
    assert estimate.tokens_left(run) == rows + 2 * each
    answers = tmp_path / "joined-k1" / "predictions" / "fp-k1.json"
    answers.parent.mkdir(parents=True)
    answers.write_text("{}")
    assert estimate.tokens_left(run) == rows
    run.plan.fidelity = None
    assert estimate.tokens_left(run) == rows - 2 * (each - 10 * estimate.QUESTION)
    for calibration in run.calibrations:
        calibration.finished = True
    assert estimate.tokens_left(run) == 0


def test_every_cost_is_known():
    assert min(estimate.CALIBRATION.values()) > 0
    assert min(estimate.QUESTION, estimate.PHOTOGRAPH, estimate.PASSAGE) > 0


def test_the_pilot_measures_the_model():
    model = llava_dinov2().model().eval()
    assert 0 < estimate.seconds_per_token(model) < 1


def test_the_pilot_reads_with_the_threads_of_one_process(monkeypatch):
    model, seen = llava_dinov2().model().eval(), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    estimate.seconds_per_token(model, processes=3)
    assert seen == [2, 6]

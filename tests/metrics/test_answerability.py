import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qvlm_lightning.metrics.answerability import (
    ANSWERABLE,
    UNANSWERABLE,
    AnswerabilityScore,
    average_precision,
    f1,
)
from qvlm_lightning.metrics.target import Judgement


def ap(scores: list[float], positive: list[int]) -> float:
    values = torch.tensor(scores, dtype=torch.float64)
    return average_precision(values, torch.tensor(positive).bool()).item()


# by hand: steps in recall times precision
@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([0.9, 0.8, 0.1], [1, 0, 1], 0.5 * 1 + 0.5 * 2 / 3),
        ([0.9, 0.8, 0.1], [0, 0, 1], 1 / 3),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 1 / 4),  # equal scores are one threshold
        ([1, 1, 0, 0], [1, 0, 1, 0], 0.5 * 1 / 2 + 0.5 * 2 / 4),
        ([0.2, 0.1], [1, 1], 1),
    ],
)
def test_average_precision(scores: list[float], positive: list[int], expected: float) -> None:
    assert ap(scores, positive) == pytest.approx(expected, abs=1e-15)


def test_nothing_to_find() -> None:
    assert math.isnan(ap([0.5], [0]))
    assert math.isnan(f1(torch.tensor([False]), torch.tensor([False])).item())
    assert f1(torch.tensor([True]), torch.tensor([False])).item() == 0


def naive_average_precision(scores: list[float], positive: list[int]) -> float:
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        recall = sum(taken) / sum(positive)
        total += (recall - before) * sum(taken) / len(taken)
        before = recall
    return total


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans()),
        min_size=1,
        max_size=30,
    ).filter(lambda pairs: any(positive for _, positive in pairs))
)
def test_average_precision_against_plain_loops(pairs) -> None:
    scores, positive = map(list, zip(*pairs, strict=True))
    assert ap(scores, positive) == pytest.approx(naive_average_precision(scores, positive))


def test_without_confidences_the_answer_tells() -> None:
    metric = AnswerabilityScore([ANSWERABLE, UNANSWERABLE])
    said, other = Judgement(10, "unanswerable"), Judgement(10, "cat")
    groups = [(UNANSWERABLE,), (UNANSWERABLE,), (ANSWERABLE,), (ANSWERABLE,), ()]
    metric.update([said, other, said, other, said], groups)  # the last is neither: not counted
    values = metric.compute()
    assert values["answerability_f1"].item() == 50  # one hit, one false alarm, one miss
    assert values["answerability_ap"].item() == 50  # 1/2 * 1/2 + 1/2 * 2/4


def test_a_confidence_outweighs_the_answer() -> None:
    metric = AnswerabilityScore([ANSWERABLE, UNANSWERABLE])
    said = Judgement(10, "unanswerable")
    metric.update([said, said], [(UNANSWERABLE,), (ANSWERABLE,)], [0.1, 0.5])
    values = metric.compute()
    # 1 - 0.5 is not above one half
    assert (values["answerability_f1"].item(), values["answerability_ap"].item()) == (100, 100)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_nothing_asked_is_no_score() -> None:
    values = AnswerabilityScore().compute()
    assert math.isnan(values["answerability_ap"].item())
    assert math.isnan(values["answerability_f1"].item())

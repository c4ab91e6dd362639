"""VizWiz's second question: can this be answered at all? Unanswerable is the positive class."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from qvlm_lightning.metrics.annotators import AnnotatorScore
from qvlm_lightning.metrics.target import Judgement

ANSWERABLE = "answerable/yes"
UNANSWERABLE = "answerable/no"
_SAID_UNANSWERABLE = "unanswerable"  # a normalised answer


class AnswerabilityScore(AnnotatorScore):
    """Leave-one-out points, and average precision and F1 of detecting unanswerable questions.

    Questions tell which they are by their groups :data:`ANSWERABLE` and :data:`UNANSWERABLE`; those
    in neither do not count. Without a confidence a question counts as predicted unanswerable, with
    certainty, if that is the answer, and else as predicted answerable.

    Args:
        groups: all groups that may occur.

    Example:
        >>> metric = AnswerabilityScore([ANSWERABLE, UNANSWERABLE])
        >>> judged = [Judgement(10, "unanswerable"), Judgement(0, "dog")]
        >>> metric.update(judged, [(UNANSWERABLE,), (ANSWERABLE,)])
        >>> metric.compute()["answerability_f1"].item()
        100.0
    """

    unanswerable: list[Tensor]
    positive: list[Tensor]

    def __init__(self, groups: Iterable[str] = ()) -> None:
        super().__init__(groups)
        # what torchmetrics gathers from a process without questions takes this type
        self.set_dtype(torch.float64)
        self.add_state("unanswerable", [], dist_reduce_fx="cat")
        self.add_state("positive", [], dist_reduce_fx="cat")

    def update(
        self,
        judgements: Sequence[Judgement],
        groups: Sequence[Sequence[str]],
        confidences: Sequence[float | None] | None = None,
    ) -> None:
        """Add questions.

        Args:
            judgements: one per question.
            groups: the groups of each question.
            confidences: probability in [0, 1] that each question is answerable, None where the
                model gave none.
        """
        super().update(judgements, groups)
        given = [None] * len(judgements) if confidences is None else confidences
        scores, labels = [], []
        for judgement, names, confidence in zip(judgements, groups, given, strict=True):
            if ANSWERABLE in names or UNANSWERABLE in names:
                said = float(judgement.parsed == _SAID_UNANSWERABLE)
                scores.append(said if confidence is None else 1 - confidence)
                labels.append(UNANSWERABLE in names)
        kept = torch.tensor([scores, labels], dtype=torch.float64, device=self.points.device)
        self.unanswerable.append(kept[0])
        self.positive.append(kept[1])

    def compute(self) -> dict[str, Tensor]:
        """Return percentages; nan for a group without questions, or without answerability."""
        scores, positive = _joined(self.unanswerable), _joined(self.positive).bool()
        return super().compute() | {
            "answerability_ap": 100 * average_precision(scores, positive),
            "answerability_f1": 100 * f1(scores > 0.5, positive),
        }


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    # after the processes are joined, torchmetrics holds one tensor in place of the list
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.zeros(0, dtype=torch.float64)


def average_precision(scores_B: Tensor, positive_B: Tensor) -> Tensor:
    """Average precision: sum over thresholds of the step in recall times the precision there.

    Equal scores are one threshold, so the result does not depend on the order of questions.

    Args:
        scores_B: float64, larger is more likely positive.
        positive_B: whether each question is positive.

    Returns:
        Scalar in [0, 1], float64; nan without a positive question.

    Example:
        >>> average_precision(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([True, False, True]))
        tensor(0.8333, dtype=torch.float64)
    """
    if not positive_B.any():
        return torch.tensor(float("nan"), dtype=torch.float64)
    _, place = torch.unique(-scores_B, return_inverse=True)
    hits = torch.bincount(place, positive_B.double()).cumsum(0)
    taken = torch.bincount(place).double().cumsum(0)
    steps = torch.diff(hits, prepend=hits.new_zeros(1)) / hits[-1]
    return (steps * hits / taken).sum()


def f1(predicted_B: Tensor, positive_B: Tensor) -> Tensor:
    """Harmonic mean of precision and recall.

    Args:
        predicted_B: whether each question is predicted positive.
        positive_B: whether it is.

    Returns:
        Scalar in [0, 1], float64; 0 without a hit, nan where nothing is or is predicted positive.

    Example:
        >>> f1(torch.tensor([True, True]), torch.tensor([True, False]))
        tensor(0.6667, dtype=torch.float64)
    """
    hits = (predicted_B & positive_B).sum().double()
    return 2 * hits / (predicted_B.sum() + positive_B.sum()).double()

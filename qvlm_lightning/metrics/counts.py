"""Metrics that count: k of n questions, over all and per family.

States are integers that are summed, so results do not depend on order, batches or processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from qvlm_lightning.metrics.answers import is_correct, parse_answer
from qvlm_lightning.metrics.grouped import OVERALL


class FamilyRate(Metric):
    """Counts hits per family of questions; a subclass says what a hit is.

    Args:
        families: all families that may occur.
    """

    full_state_update = False
    hits: Tensor
    total: Tensor

    def __init__(self, families: Sequence[str]) -> None:
        super().__init__()
        self.families = tuple(families)
        self._place = {name: place for place, name in enumerate(self.families)}
        zeros = torch.zeros(len(self.families), dtype=torch.long)
        self.add_state("hits", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")

    def count(self, hits: Sequence[bool], families: Sequence[str]) -> None:
        """Add questions.

        Args:
            hits: whether each question counts.
            families: family of each question.
        """
        places = torch.tensor([self._place[f] for f in families], dtype=torch.long)
        places = places.to(self.hits.device)
        hit = torch.tensor(hits, dtype=torch.long, device=places.device)
        self.hits.index_add_(0, places, hit)
        self.total.index_add_(0, places, torch.ones_like(places))

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return (k, n) over all questions and per family that occurred."""
        pairs = zip(self.hits.tolist(), self.total.tolist(), strict=True)
        per_family = dict(zip(self.families, pairs, strict=True))
        overall = int(self.hits.sum()), int(self.total.sum())
        return {OVERALL: overall} | {name: (k, n) for name, (k, n) in per_family.items() if n}

    def compute(self) -> dict[str, Tensor]:
        """Return percentages over all questions and per family that occurred."""
        return {
            name: torch.tensor(100 * k / n if n else float("nan"), dtype=torch.float64)
            for name, (k, n) in self.counts().items()
        }


class AnswerAccuracy(FamilyRate):
    """Percent of questions answered as expected; what cannot be parsed is wrong.

    Example:
        >>> metric = AnswerAccuracy(["count"])
        >>> metric.update(["3", "4"], ["3", "3"], [0, 0], ["count", "count"])
        >>> metric.counts()
        {'overall': (1, 2), 'count': (1, 2)}
    """

    def update(
        self,
        texts: Sequence[str],
        answers: Sequence[str],
        choices: Sequence[int],
        families: Sequence[str],
    ) -> None:
        """Add questions: generated texts, expected answers, number of options, families."""
        asked = zip(texts, answers, choices, strict=True)
        self.count([is_correct(t, a, c) for t, a, c in asked], families)


class ParseFailures(FamilyRate):
    """Percent of questions whose text holds no answer: empty, or not one of the letters.

    Example:
        >>> metric = ParseFailures(["pick"])
        >>> metric.update(["A", "maybe"], [3, 3], ["pick", "pick"])
        >>> metric.counts()["overall"]
        (1, 2)
    """

    def update(self, texts: Sequence[str], choices: Sequence[int], families: Sequence[str]) -> None:
        """Add questions: generated texts, number of options, families."""
        asked = zip(texts, choices, strict=True)
        self.count([parse_answer(t, c) is None for t, c in asked], families)


class Agreement(FamilyRate):
    """Percent of questions that two models answer alike, right or wrong.

    Example:
        >>> metric = Agreement(["count"])
        >>> metric.update(["3", "4"], ["3", "5"], [0, 0], ["count", "count"])
        >>> metric.counts()["overall"]
        (1, 2)
    """

    def update(
        self,
        texts: Sequence[str],
        others: Sequence[str],
        choices: Sequence[int],
        families: Sequence[str],
    ) -> None:
        """Add questions: texts of both models, number of options, families."""
        pairs = zip(texts, others, choices, strict=True)
        self.count([parse_answer(a, c) == parse_answer(b, c) for a, b, c in pairs], families)

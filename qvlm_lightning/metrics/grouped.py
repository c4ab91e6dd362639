"""Mean points over all questions and per group, exact whatever the order and the sharing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from qvlm_lightning.metrics.target import WHOLE, Judgement

OVERALL = "overall"
UNPARSED = "unparsed"


class GroupedScore(Metric):
    """Percent of points reached, over all questions and per group; groups may overlap.

    Args:
        groups: all groups that may occur.

    Example:
        >>> metric = GroupedScore(["context/IMG", "context/TXT"])
        >>> metric.update([Judgement(10, "A"), Judgement(3, "B")], [("context/IMG",), ()])
        >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
        {'overall': 65.0, 'context/IMG': 100.0, 'context/TXT': nan}
    """

    full_state_update = False
    points: Tensor
    total: Tensor
    unparsed: Tensor

    def __init__(self, groups: Iterable[str] = ()) -> None:
        super().__init__()
        self.groups = tuple(dict.fromkeys(groups))
        self._place = {name: 1 + place for place, name in enumerate(self.groups)}
        zeros = torch.zeros(1 + len(self.groups), dtype=torch.long)
        for name in ("points", "total"):
            self.add_state(name, zeros.clone(), dist_reduce_fx="sum")
        self.add_state("unparsed", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, judgements: Sequence[Judgement], groups: Sequence[Sequence[str]]) -> None:
        """Add questions.

        Args:
            judgements: one per question.
            groups: the groups of each question.

        Raises:
            ValueError: a group that was not announced, or lists of different length.
        """
        points, total, unparsed = [0] * len(self.total), [0] * len(self.total), 0
        for judgement, names in zip(judgements, groups, strict=True):
            unknown = [name for name in names if name not in self._place]
            if unknown:
                raise ValueError(f"unknown group {unknown[0]!r}; allowed are {self.groups}")
            for place in (0, *{self._place[name] for name in names}):
                points[place] += judgement.points
                total[place] += 1
            unparsed += judgement.parsed is None
        self.points += torch.tensor(points, device=self.points.device)
        self.total += torch.tensor(total, device=self.total.device)
        self.unparsed += unparsed

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return (points, questions) over all questions and per group."""
        pairs = zip(self.points.tolist(), self.total.tolist(), strict=True)
        return dict(zip((OVERALL, *self.groups), pairs, strict=True))

    def compute(self) -> dict[str, Tensor]:
        """Return percentages; nan for a group without questions."""
        return {
            name: torch.tensor(100 * k / (WHOLE * n) if n else float("nan"), dtype=torch.float64)
            for name, (k, n) in self.counts().items()
        }


def plain_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Replace what JSON cannot say: a group without questions has no percentage.

    Args:
        scores: figures by name; anything but numbers is left alone.

    Example:
        >>> plain_scores({"mode": "exact", "overall": 50.0, "context/IMG": float("nan")})
        {'mode': 'exact', 'overall': 50.0, 'context/IMG': None}
    """
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in scores.items()
    }

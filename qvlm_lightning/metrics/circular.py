"""Circular evaluation: a question counts only if every rotation of its options is answered."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from qvlm_lightning.metrics.grouped import OVERALL
from qvlm_lightning.metrics.target import WHOLE, Judgement

FIRST_PASS = "first_pass"
ROW = "row"


class CircularScore(Metric):
    """Percent of questions whose rotations are all right (MMBench's CircularEval).

    Rotations of a question may arrive in any order, batch and process: hits are counted per
    question, and all of them are announced beforehand, so that a missing rotation is a wrong one.

    Args:
        rotations: question -> how many rotations it has.
        groups: question -> its groups.

    Example:
        >>> metric = CircularScore({"7": 2, "8": 1})
        >>> right, wrong = Judgement(10, "A"), Judgement(0, "B")
        >>> metric.update([right, wrong, right], ["7", "7", "8"], [True, False, True])
        >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
        {'overall': 50.0, 'first_pass': 100.0, 'row': 66.67}
    """

    full_state_update = False
    hits: Tensor
    first_hits: Tensor
    unparsed: Tensor

    def __init__(
        self,
        rotations: Mapping[str, int],
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.rotations = dict(rotations)
        self._place = {name: place for place, name in enumerate(self.rotations)}
        self._members: dict[str, list[int]] = {}
        for name, names in (groups or {}).items():
            for group in dict.fromkeys(names):
                self._members.setdefault(group, []).append(self._place[name])
        zeros = torch.zeros(len(self.rotations), dtype=torch.long)
        for state in ("hits", "first_hits"):
            self.add_state(state, zeros.clone(), dist_reduce_fx="sum")
        self.add_state("unparsed", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self, judgements: Sequence[Judgement], questions: Sequence[str], first: Sequence[bool]
    ) -> None:
        """Add rotations.

        Args:
            judgements: one per rotation.
            questions: the question that each is a rotation of.
            first: whether it is the question as it was asked first.

        Raises:
            ValueError: a question that was not announced, or lists of different length.
        """
        hits, first_hits, unparsed = [0] * len(self._place), [0] * len(self._place), 0
        for judgement, name, is_first in zip(judgements, questions, first, strict=True):
            if name not in self._place:
                raise ValueError(f"unknown question {name!r}; {len(self._place)} were announced")
            right = judgement.points == WHOLE
            hits[self._place[name]] += right
            first_hits[self._place[name]] += right and is_first
            unparsed += judgement.parsed is None
        device = self.hits.device
        self.hits += torch.tensor(hits, dtype=torch.long, device=device)
        self.first_hits += torch.tensor(first_hits, dtype=torch.long, device=device)
        self.unparsed += unparsed

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return (hits, of how many): questions over all and per group, first passes and rows."""
        asked = list(self.rotations.values())
        right = [k == n for k, n in zip(self.hits.tolist(), asked, strict=True)]
        per_group = {
            name: (sum(right[place] for place in places), len(places))
            for name, places in sorted(self._members.items())
        }
        return {
            OVERALL: (sum(right), len(right)),
            **per_group,
            FIRST_PASS: (int(self.first_hits.sum()), len(asked)),
            ROW: (int(self.hits.sum()), sum(asked)),
        }

    def compute(self) -> dict[str, Tensor]:
        """Return percentages; nan without questions."""
        return {
            name: torch.tensor(100 * k / n if n else float("nan"), dtype=torch.float64)
            for name, (k, n) in self.counts().items()
        }

"""Yes or no: counts of both kinds of errors, what is made of them, and how answers rank."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from qvlm_lightning.metrics.grouped import OVERALL

# (answered, expected) -> field of BinaryTable
_COLUMN = {
    (True, True): 0,
    (True, False): 1,
    (False, False): 2,
    (False, True): 3,
    (None, True): 3,
    (None, False): 4,
}


@dataclass(frozen=True)
class BinaryTable:
    """How many questions were answered in which way; "yes" is positive."""

    tp: int
    """Yes, and right."""
    fp: int
    """Yes, but expected was no."""
    tn: int
    """No, and right."""
    fn: int
    """Anything but yes where yes was expected."""
    void: int
    """Neither yes nor no where no was expected: wrong, but no false alarm."""

    def figures(self) -> dict[str, float]:
        """Return accuracy, precision, recall, F1 and share of yes in percent.

        All are nan without questions. A ratio of nothing (precision without a yes, recall without
        a question that expects one) is 0.

        Example:
            >>> table = BinaryTable(tp=3, fp=1, tn=4, fn=2, void=0)
            >>> {name: round(value, 2) for name, value in table.figures().items()}
            {'accuracy': 70.0, 'precision': 75.0, 'recall': 60.0, 'f1': 66.67, 'yes_ratio': 40.0}
        """
        n = sum(astuple(self))
        ratios = {
            "accuracy": (self.tp + self.tn, n),
            "precision": (self.tp, self.tp + self.fp),
            "recall": (self.tp, self.tp + self.fn),
            "f1": (2 * self.tp, 2 * self.tp + self.fp + self.fn),
            "yes_ratio": (self.tp + self.fp, n),
        }
        nothing = 0.0 if n else float("nan")
        return {name: 100 * k / of if of else nothing for name, (k, of) in ratios.items()}


class BinaryCounts(Metric):
    """Counts answers to yes-no questions, over all and per group.

    States are integers that are summed: exact whatever the order and the sharing.

    Args:
        groups: all groups that may occur.

    Example:
        >>> metric = BinaryCounts(["random"])
        >>> metric.update([True, False, None], [True, True, False], [("random",)] * 3)
        >>> metric.tables()["random"]
        BinaryTable(tp=1, fp=0, tn=0, fn=1, void=1)
    """

    full_state_update = False
    cells: Tensor

    def __init__(self, groups: Iterable[str] = ()) -> None:
        super().__init__()
        self.groups = tuple(dict.fromkeys(groups))
        self._place = {name: 1 + place for place, name in enumerate(self.groups)}
        zeros = torch.zeros(1 + len(self.groups), 5, dtype=torch.long)
        self.add_state("cells", zeros, dist_reduce_fx="sum")

    def update(
        self,
        answers: Sequence[bool | None],
        expected: Sequence[bool],
        groups: Sequence[Sequence[str]],
    ) -> None:
        """Add questions.

        Args:
            answers: whether yes was answered; None where neither yes nor no could be read.
            expected: whether yes was expected.
            groups: the groups of each question.

        Raises:
            ValueError: a group that was not announced, or lists of different length.
        """
        cells = [[0] * 5 for _ in self.cells]
        for answer, truth, names in zip(answers, expected, groups, strict=True):
            unknown = [name for name in names if name not in self._place]
            if unknown:
                raise ValueError(f"unknown group {unknown[0]!r}; allowed are {self.groups}")
            column = _COLUMN[answer, truth]
            for place in (0, *{self._place[name] for name in names}):
                cells[place][column] += 1
        self.cells += torch.tensor(cells, device=self.cells.device)

    def tables(self) -> dict[str, BinaryTable]:
        """Return the counts over all questions and per group."""
        rows = zip((OVERALL, *self.groups), self.cells.tolist(), strict=True)
        return {name: BinaryTable(*row) for name, row in rows}

    def compute(self) -> dict[str, Tensor]:
        """Return percentages ``<group>/<figure>`` over all questions and per group."""
        return {
            f"{name}/{figure}": torch.tensor(value, dtype=torch.float64)
            for name, table in self.tables().items()
            for figure, value in table.figures().items()
        }


def auroc(confidences: Sequence[float | None], expected: Sequence[bool]) -> float:
    """Area under the ROC curve: how often a positive ranks above a negative; ties count half.

    Args:
        confidences: how sure the model is of yes, on any scale; None (or nan) where it did not say,
            which ranks on the wrong side of everything.
        expected: whether yes was expected.

    Returns:
        Percent; nan unless both kinds of questions occur.

    Example:
        >>> auroc([0.9, 0.4, 0.4, 0.1], [True, True, False, False])
        87.5
    """
    if len(set(expected)) < 2:
        return math.nan
    lowest, highest = (0, 0.0), (2, 0.0)
    counts: dict[tuple[int, float], list[int]] = {}
    for confidence, truth in zip(confidences, expected, strict=True):
        if confidence is None or math.isnan(confidence):
            place = lowest if truth else highest
        else:
            place = (1, confidence)
        counts.setdefault(place, [0, 0])[truth] += 1
    # twice the number of pairs in the right order, in integers: exact whatever the order
    twice, below = 0, 0
    for _, (negative, positive) in sorted(counts.items()):
        twice += positive * (2 * below + negative)
        below += negative
    return 100 * twice / (2 * below * (len(expected) - below))

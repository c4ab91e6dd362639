"""How far a model's answer distribution is from full precision.

Shapes: B questions, V words of the vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from qvlm_lightning.metrics.grouped import OVERALL

_UNIT = 2.0**-32  # nats; sums of whole units are exact in any order


def answer_kl(reference_BV: Tensor, log_probs_BV: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the answer token's distribution from the reference's.

    Args:
        reference_BV: log-probabilities of the reference, nats.
        log_probs_BV: log-probabilities of the model, nats.

    Returns:
        [B] sum_v p_ref (log p_ref - log p), nats, float64.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
        >>> answer_kl(p.log(), q.log())
        tensor([0.1438], dtype=torch.float64)
    """
    reference, model = reference_BV.double(), log_probs_BV.double()
    gap = torch.where(reference == -torch.inf, 0.0, reference - model)
    # stored log-probabilities sum to 1 up to float32: the divergence may come out as -1e-8
    return (reference.exp() * gap).sum(-1).clamp_min(0)


class AnswerKL(Metric):
    """Mean divergence from the reference at the answer token, nats, over all and per family.

    Args:
        families: all families that may occur.

    Example:
        >>> metric = AnswerKL(["count"])
        >>> p = torch.tensor([[0.5, 0.5]]).log()
        >>> metric.update(p, p, ["count"])
        >>> metric.compute()["overall"].item()
        0.0
    """

    full_state_update = False
    units: Tensor
    total: Tensor

    def __init__(self, families: Sequence[str]) -> None:
        super().__init__()
        self.families = tuple(families)
        self._place = {name: place for place, name in enumerate(self.families)}
        zeros = torch.zeros(len(self.families), dtype=torch.long)
        self.add_state("units", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")

    def update(self, reference_BV: Tensor, log_probs_BV: Tensor, families: Sequence[str]) -> None:
        """Add questions: log-probabilities of reference and model [B, V], families."""
        places = torch.tensor([self._place[f] for f in families], dtype=torch.long)
        places = places.to(self.units.device)
        units = (answer_kl(reference_BV, log_probs_BV) / _UNIT).round().long()
        self.units.index_add_(0, places, units.to(places.device))
        self.total.index_add_(0, places, torch.ones_like(places))

    def compute(self) -> dict[str, Tensor]:
        """Return means over all questions and per family that occurred."""
        occurred = [
            (f, u, n) for f, u, n in zip(self.families, self.units, self.total, strict=True)
        ]
        sums = [(OVERALL, self.units.sum(), self.total.sum()), *[x for x in occurred if x[2] > 0]]
        return {name: units.double() * _UNIT / n for name, units, n in sums}

"""Search of a scale per channel that a fold moves from activations into weights."""

from abc import abstractmethod
from typing import get_args

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.fold_groups import FoldGroup, fold_errors, fold_groups
from qvlm_lightning.methods.percentile import best
from qvlm_lightning.methods.scaling import scaled
from qvlm_lightning.methods.site_statistics import Chain, collect
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.nn.folding import per_channel


class ScaleSearch(Method):
    """Tries scales for each group of layers that read one norm or Linear layer, in forward order.

    Each is judged at the output of the attention, of the MLP, or of a single layer
    (:func:`fold_errors`); ties go to the earlier candidate.

    Args:
        inputs: ``full_precision``, or ``quantized``: behind quantized earlier layers.
        power: p of the error ``|y - y_fp|^p``.
        norms_only: leave the layers alone that read another Linear layer.
        objective: see :class:`Method`; it decides nothing but the J that is reported.
        token_weights: see there; they count in the error.
    """

    pairs = "all"
    changes_weights = True
    folds = True

    def __init__(
        self,
        inputs: Chain = "full_precision",
        power: float = 2.0,
        norms_only: bool = False,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        if inputs not in get_args(Chain):
            allowed = ", ".join(map(repr, get_args(Chain)))
            raise InputError(f"inputs {inputs!r} is not known; allowed: {allowed}")
        if not 0 < power <= 4:
            raise InputError(f"power {power} is not allowed; more than 0, at most 4")
        self.inputs: Chain = inputs
        self.power, self.norms_only = power, norms_only

    @abstractmethod
    def factors(self, block: Block, group: FoldGroup, decision: Decision) -> Tensor:
        """Return the candidates for a group, [C, S].

        Args:
            block: with its cached inputs.
            group: whose inputs they scale.
            decision: what was decided before.
        """

    def refine(self, block: Block, unit: int, decision: Decision) -> Decision:
        """Return what follows for a unit whose scales have been decided; nothing by default."""
        return decision

    @torch.no_grad()
    def solve(self, block: Block) -> Decision:
        """Return the folds, and J for them and before."""
        decision = Decision(scores={"minmax": block.error()})
        for unit in range(len(block.units)):
            for group in fold_groups(block, unit, self.norms_only):
                decision |= self._fold(block, group, decision)
            decision |= self.refine(block, unit, decision)
        return decision | Decision(scores={self.name: block.error(decision)})

    def _fold(self, block: Block, group: FoldGroup, decision: Decision) -> Decision:
        """Return the best fold of a group."""
        factors_CS = self.factors(block, group, decision)
        index = 0
        if len(factors_CS) > 1:
            errors = fold_errors(block, group, factors_CS, decision, self.power, self.inputs)
            index = best(errors)
        if bool((factors_CS[index] == 1).all()):
            return decision
        return scaled(block, group.sites[0], factors_CS[index], decision)


def mean_magnitudes(block: Block, group: FoldGroup, decision: Decision, chain: Chain) -> Tensor:
    """Return the mean magnitude of every channel of a group's source over all tokens, [S]."""
    sums = collect(block, group.sites, ("magnitude",), decision, chain, weighted=False)
    total_D: Tensor | None = None
    tokens = 0.0
    for one in sums.values():
        assert one.magnitude is not None, "it has been asked for"
        total_D = one.magnitude if total_D is None else total_D + one.magnitude
        tokens += one.weight
    assert total_D is not None, "a group has sites"
    return per_channel(group.source, total_D / max(tokens, 1.0), "mean")


def magnitude_factors(size_S: Tensor, count: int) -> Tensor:
    """Return ``size^t`` for t = 0, 1/count, .. (count - 1)/count, each with a largest times a
    smallest value of 1, [count, S] (AWQ, arXiv:2306.00978, eq. 5).

    Example:
        >>> magnitude_factors(torch.tensor([1.0, 4.0]), 2)
        tensor([[1.0000, 1.0000],
                [0.7071, 1.4142]])
    """
    exponent_C = torch.arange(count, dtype=size_S.dtype, device=size_S.device) / count
    factors_CS = size_S.pow(exponent_C[:, None]).clamp_min(1e-4)
    least, most = factors_CS.aminmax(dim=1, keepdim=True)
    return factors_CS / (least * most).sqrt()

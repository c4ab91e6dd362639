"""Learned rounding of weights on the output of a block (AdaRound, ICML 2020, arXiv:2004.10568;
blocks as in BRECQ, ICLR 2021, arXiv:2102.05426).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.block_learning import ActivationClips, descend
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.gptq import RATIOS
from qvlm_lightning.methods.requirements import needs_quantized_weights
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.nn.weight_quantizer import exact_weights
from qvlm_lightning.quant.gptq import Grid
from qvlm_lightning.quant.rounding import (
    Annealing,
    Steps,
    free_variable,
    raised,
    softly_rounded,
    undecided,
)
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.quant.weight_ranges import searched_ranges


class AdaRound(Method):
    """Learns for every weight whether it is rounded down or up, on the block's output.

    ``W_q = s clip(floor(W / s) + h(V), n, p)`` with h a sigmoid stretched over [0, 1] and clipped
    (eq. 22 and 23). A regularizer ``sum 1 - |2 h - 1|^beta`` with falling beta drives every h to 0
    or 1 (eq. 24). Layers of a block are learned together: the partition says how many.

    Ranges of weights are those that earlier steps of a chain have decided, otherwise of the least
    squared error of the weight. Ranges of activations are learned with the roundings.

    Args:
        steps: of Adam, on one batch each.
        lr: its rate, for V.
        clip_lr: for the factors on ranges of activations; 0 leaves them alone.
        weight: of the regularizer, as a share of the J that is started from.
        objective: see :class:`Method`.
        token_weights: see there.
    """

    name = "adaround"
    pairs = "all"
    changes_weights = True

    def __init__(
        self,
        steps: int = 200,
        lr: float = 0.05,
        clip_lr: float = 0.005,
        weight: float = 20.0,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        if steps < 1:
            raise InputError(f"steps {steps} is not allowed; at least 1")
        if not (lr > 0 and clip_lr >= 0 and weight >= 0):
            raise InputError(
                f"lr {lr}, clip_lr {clip_lr} and weight {weight} are not allowed; lr above 0, the "
                "others 0 or more"
            )
        self.steps, self.lr, self.clip_lr, self.weight = steps, lr, clip_lr, weight

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that leaves all weights alone."""
        needs_quantized_weights(self.name, scheme)

    def solve(self, block: Block) -> Decision:
        """Return weights on their grids and ranges; rounding to nearest on the same ranges, if
        learning did not help.
        """
        learned = _Learned(block)
        near = learned.rounded()
        minmax, before = block.errors([None, near]).tolist()
        groups: list[dict[str, object]] = [{"params": list(learned.free.values()), "lr": self.lr}]
        if self.clip_lr:
            groups.append({"params": learned.activations.parameters, "lr": self.clip_lr})
        if not any(group["params"] for group in groups):  # nothing here is quantized
            scores = {"minmax": minmax, "start": before, self.name: before}
            return Decision(near.tensors, scores)
        annealing = Annealing(self.steps, self.lr, self.weight * before)
        penalty = learned.penalty(annealing)
        with exact_weights(block.linear(name).weight_quantizer for name in learned.free):
            descend(block, groups, learned.decision, self.steps, penalty=penalty, falling=False)
        found = learned.rounded()
        after = float(block.errors([found])[0])
        scores = {"minmax": minmax, "start": before, self.name: min(before, after)}
        return Decision((found if after < before else near).tensors, scores)


class _Learned:
    """What is learned of a block.

    Attributes:
        grids: layer -> the values its weight may take.
        down: layer -> whole steps below its weight, [O, I].
        free: layer -> V, [O, I], at first such that nothing is rounded.
        activations: factors on the ranges of activations.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.grids: dict[str, Grid] = {}
        self.down: dict[str, Tensor] = {}
        self.free: dict[str, Tensor] = {}
        for site in block.sites:
            for name, linear in site.linears.items():
                if linear.weight_quantizer.active:
                    weight = block.tensor(f"{name}.weight").detach()
                    self.grids[name] = _grid(block, name, weight)
                    steps = weight.float() / self._steps(name).scale
                    self.down[name] = steps.floor()
                    self.free[name] = free_variable(steps - self.down[name]).requires_grad_()
        self.activations = ActivationClips.of(block)

    def decision(self) -> Decision:
        """Return what the parameters stand for; differentiable."""
        return self._decision(raised)

    @torch.no_grad()
    def rounded(self) -> Decision:
        """Return the same with every weight on its grid, the nearer value of the two."""
        return self._decision(lambda free: (free >= 0).float()).detached()

    def penalty(self, annealing: Annealing) -> Callable[[int], Tensor]:
        """Return the regularizer of a step, per weight; differentiable."""
        count = sum(free.numel() for free in self.free.values())

        def of(step: int) -> Tensor:
            beta = annealing.beta(step)
            if beta is None or not count:
                return torch.zeros(())
            shares = (undecided(raised(free), beta) for free in self.free.values())
            return torch.stack(list(shares)).sum() * (annealing.weight / count)

        return of

    def _decision(self, share_of: Callable[[Tensor], Tensor]) -> Decision:
        found = self.activations.decision()
        for name, grid in self.grids.items():
            share, down = share_of(self.free[name]), self.down[name]
            weight = softly_rounded(down, share, self._steps(name)).to(grid.dtype)
            found |= self.block.decide_weight(name, weight, grid.low, grid.high)
        return found

    def _steps(self, name: str) -> Steps:
        scale, zero_point, least, most = self.grids[name].qparams()
        scale, zero_point = scale.float(), zero_point.float()
        inputs = self.block.linear(name).in_features
        return Steps(scale, least - zero_point, most - zero_point).wide(inputs)


def _grid(block: Block, name: str, weight: Tensor) -> Grid:
    """Return the grid of a layer's weight: the given one, or that of its least squared error."""
    own = block.linear(name).weight_quantizer
    place = f"{name}.weight_quantizer"
    if f"{place}.low" in block.given.tensors:
        ratio = block.tensor(f"{place}.clip_ratio").detach()[..., None]
        low, high = (block.tensor(f"{place}.{end}").detach() * ratio for end in ("low", "high"))
    else:
        low, high = searched_ranges(
            weight.float(), RATIOS, own.num_bits, own.group_size, own.symmetric, None, weight.dtype
        )
    return Grid(low, high, own.num_bits, own.symmetric, weight.dtype)

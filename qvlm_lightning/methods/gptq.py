"""GPTQ (Frantar et al., ICLR 2023, arXiv:2210.17323) on the inputs that earlier layers leave."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.requirements import (
    check_ranges,
    needs_quantized_weights,
    needs_ranges_only,
)
from qvlm_lightning.methods.site_statistics import SiteStatistics, collect, stages
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.nn.structure import Site
from qvlm_lightning.quant.gptq import Grid, inverse_factor, row_errors, sweep
from qvlm_lightning.quant.scheme import OFF, Scheme
from qvlm_lightning.quant.weight_ranges import rounded_on, searched_ranges
from qvlm_lightning.quant.weights import weight_ranges

WeightRange = Literal["minmax", "mse", "output"]

RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Of minimum and maximum, among which a weight's range is chosen."""


@dataclass(frozen=True)
class _Inputs:
    """What the layers of a site know of their inputs.

    Attributes:
        gram: H, [I, I] float64.
        order: in which input channels are rounded, [I].
        factor: of the inverse of H, in that order.
        cross: see :class:`SiteStatistics`; ``None`` unless inputs are asymmetric.
    """

    gram: Tensor
    order: Tensor
    factor: Tensor
    cross: Tensor | None


class GPTQ(Method):
    """Rounds weights one input channel after another, and lets the next ones make up for the error.

    Every layer minimises ``||(W_q - W) X||^2`` for the inputs X that it will read: those behind the
    quantized earlier layers and behind the quantizer of its site. Rows that rounding to the nearest
    value fits better keep that, so no layer is worse than round-to-nearest by this measure.

    Args:
        damp: share of the mean diagonal that is added to the Gram matrix.
        act_order: round channels with large inputs first. Groups of inputs then have ranges chosen
            beforehand; otherwise a group's range is chosen when its turn comes.
        weight_range: ``minmax``; ``mse``, the range of the least error of the weight; ``output``,
            that of the least error of the output.
        asymmetric: minimise ``||W_q X - W X_fp||^2``, with the inputs of the full-precision chain.
        ranges: decides the activations' ranges first, where any is quantized; default: minimum and
            maximum.
        objective: see :class:`Method`.
        token_weights: see there; they count in the Gram matrix.
    """

    name = "gptq"
    pairs = "all"
    changes_weights = True

    def __init__(
        self,
        damp: float = 0.01,
        act_order: bool = True,
        weight_range: WeightRange = "output",
        asymmetric: bool = False,
        ranges: Method | None = None,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        if not 0 < damp <= 1:
            raise InputError(f"damp {damp} is not allowed; more than 0, at most 1")
        if weight_range not in get_args(WeightRange):
            allowed = ", ".join(map(repr, get_args(WeightRange)))
            raise InputError(f"weight_range {weight_range!r} is not known; allowed: {allowed}")
        needs_ranges_only(ranges)
        self.damp, self.act_order, self.weight_range = damp, act_order, weight_range
        self.asymmetric, self.ranges = asymmetric, ranges
        self.uses_tables = ranges is not None and ranges.uses_tables

    def candidates(self, activation_mode: str) -> list[float]:
        """Return those of what decides the ranges."""
        return self.ranges.candidates(activation_mode) if self.ranges else [1.0]

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that leaves all weights alone, or that ``ranges`` refuses."""
        needs_quantized_weights(self.name, scheme)
        check_ranges(self.ranges, scheme)

    @torch.no_grad()
    def solve(self, block: Block) -> Decision:
        """Return ranges and weights, and J for them and for what decided the ranges."""
        if self.ranges is not None and any(site.quantizer.num_bits < OFF for site in block.sites):
            decision = self.ranges.solve(block)  # its first J is that of minimum and maximum
        else:
            decision = Decision(scores={"minmax": block.error()})
        want = ("gram", "cross") if self.asymmetric else ("gram",)
        for stage in stages(block):
            if any(x.weight_quantizer.active for site in stage for x in site.linears.values()):
                sums = collect(block, stage, want, decision, read=True)
                for site in stage:
                    decision |= self._decide(block, site, sums[site.name])
        return decision | Decision(scores={self.name: block.error(decision)})

    def _decide(self, block: Block, site: Site, sums: SiteStatistics) -> Decision:
        """Return the weights of the layers of a site."""
        assert sums.gram is not None, "it has been asked for"
        order = torch.arange(len(sums.gram), device=sums.gram.device)
        if self.act_order:
            order = sums.gram.diagonal().argsort(descending=True, stable=True)
        factor = inverse_factor(sums.gram[order][:, order], self.damp)
        known = _Inputs(sums.gram, order, factor, sums.cross)
        decision = Decision()
        for names in _alike(site):
            weights = [block.tensor(f"{name}.weight") for name in names]
            own, outputs = site.linears[names[0]].weight_quantizer, [len(w) for w in weights]
            weight = torch.cat(weights)
            low, high = weight_ranges(weight, own.group_size, own.symmetric)
            grid = Grid(low, high, own.num_bits, own.symmetric, weight.dtype)
            rounded, grid = self._rounded(weight.float(), known, grid, own.group_size)
            parts = (x.split(outputs) for x in (rounded, grid.low, grid.high))
            for name, *part in zip(names, *parts, strict=True):
                decision |= block.decide_weight(name, *(x.clone() for x in part))
        return decision

    def _rounded(
        self, weight_OI: Tensor, known: _Inputs, minmax: Grid, group_size: int | None
    ) -> tuple[Tensor, Grid]:
        """Return a weight on its grid, [O, I] float32."""
        wanted_OI = self._wanted(weight_OI, known)

        def ranges_of(part_OJ: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
            gram = known.gram[columns, columns]
            return self._ranges(part_OJ, gram, minmax, None)

        low, high = self._ranges(wanted_OI, known.gram, minmax, group_size)
        later = None if self.act_order or group_size is None else ranges_of
        done_OI, grid = sweep(
            wanted_OI, known.factor, replace(minmax, low=low, high=high), known.order, later
        )
        near_OI = rounded_on(
            weight_OI, minmax.low, minmax.high, minmax.num_bits, minmax.symmetric, minmax.dtype
        )
        errors = (row_errors(x - wanted_OI, known.gram) for x in (done_OI, near_OI))
        near_O = torch.lt(*reversed(list(errors)))
        return torch.where(near_O[:, None], near_OI, done_OI.float()), replace(
            grid,
            low=torch.where(near_O[:, None, None], minmax.low, grid.low),
            high=torch.where(near_O[:, None, None], minmax.high, grid.high),
        )

    def _wanted(self, weight_OI: Tensor, known: _Inputs) -> Tensor:
        """Return the weight that rounding starts from: the layer's own, or the one that makes of
        the quantized chain's inputs what the layer's own makes of exact ones, as well as a weight
        can: ``W + W (X_fp - X) X^T (X X^T)^-1``.
        """
        if known.cross is None:
            return weight_OI
        order, factor = known.order, known.factor
        more_OI = (weight_OI.double() @ known.cross)[:, order] @ factor.T @ factor
        moved = torch.empty_like(more_OI)
        moved[:, order] = more_OI
        return (weight_OI.double() + moved).float()

    def _ranges(
        self, weight_OI: Tensor, gram_II: Tensor, grid: Grid, group_size: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the range of every output channel or group, [O, G, 1]."""
        weight_OI = weight_OI.float()
        if self.weight_range == "minmax":
            return weight_ranges(weight_OI, group_size, grid.symmetric)
        gram = gram_II if self.weight_range == "output" else None
        return searched_ranges(
            weight_OI, RATIOS, grid.num_bits, group_size, grid.symmetric, gram, grid.dtype
        )


def _alike(site: Site) -> list[list[str]]:
    """Return the layers of a site whose weights are quantized, those on grids of one kind together:
    their output channels are rounded as if they were those of one layer.
    """
    found: dict[tuple[object, ...], list[str]] = {}
    for name, linear in site.linears.items():
        own = linear.weight_quantizer
        if own.active:
            kind = own.num_bits, own.group_size, own.symmetric, linear.weight.dtype
            found.setdefault(kind, []).append(name)
    return list(found.values())

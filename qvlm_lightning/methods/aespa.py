"""aespa: attention-aware rounding of weights (Kim et al., NeurIPS 2024, arXiv:2402.08958)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.attention_statistics import attention_of, attention_statistics
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.requirements import (
    check_ranges,
    needs_quantized_weights,
    needs_ranges_only,
)
from qvlm_lightning.methods.site_statistics import collect, stages
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.nn.structure import Site
from qvlm_lightning.nn.weight_quantizer import WeightQuantizer
from qvlm_lightning.quant.gptq import Grid, compensated, inverse_factor, sweep
from qvlm_lightning.quant.hessian_ranges import hessian_ranges
from qvlm_lightning.quant.quadratic import Quadratic
from qvlm_lightning.quant.rounding import Annealing, Steps, learned_rounding
from qvlm_lightning.quant.scheme import OFF, Scheme
from qvlm_lightning.quant.weight_ranges import rounded_on
from qvlm_lightning.quant.weights import weight_ranges

_Rows = tuple[slice, Quadratic]
"""Rows of a weight that are rounded together, and what they are judged by."""


@dataclass(frozen=True)
class _Rounded:
    """A weight on a grid.

    Attributes:
        weight: [O, I] float32.
        low, high: [O, G, 1].
    """

    weight: Tensor
    low: Tensor
    high: Tensor

    def where(self, rows_O: Tensor, other: "_Rounded") -> "_Rounded":
        """Return ``other`` in the rows, this one in the rest."""
        return _Rounded(
            torch.where(rows_O[:, None], other.weight, self.weight),
            torch.where(rows_O[:, None, None], other.low, self.low),
            torch.where(rows_O[:, None, None], other.high, self.high),
        )


class AESPA(Method):
    """Rounds queries, keys and values for the error at the output of their attention, per head, and
    all other layers for the error of their own output.

    With E the rounding errors, X the inputs, A the attention's probabilities and Lambda the token
    weights: values minimise ``tr(E X A^T Lambda A X^T E^T)``, exactly the error of A V; queries
    ``tr(K^T K E X Lambda X^T E^T)`` and keys ``tr(Q^T Lambda Q E X X^T E^T)``, which bound the
    error of Q K^T; others ``tr(E X Lambda X^T E^T)``. Each is rounded while the others are exact,
    and no head (of other layers: no output channel) is worse than round-to-nearest by its measure.

    Args:
        sweep: let later input channels make up for the rounding errors of earlier ones (GPTQ)
            before roundings are learned.
        steps: of Adam, for learned rounding; 0 for none.
        damp: share of the mean diagonal that is added to H in the sweep.
        attention: ``False`` judges queries, keys and values by their own output too.
        ranges: decides the activations' ranges first, where any is quantized; default: minimum and
            maximum.
        objective: see :class:`Method`.
        token_weights: see there; those of :class:`ModalityBalance` balance the modalities.
    """

    name = "aespa"
    pairs = "all"
    changes_weights = True

    def __init__(
        self,
        sweep: bool = True,
        steps: int = 1000,
        damp: float = 0.01,
        attention: bool = True,
        ranges: Method | None = None,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        if steps < 0:
            raise InputError(f"steps {steps} is not allowed; at least 0")
        if not 0 < damp <= 1:
            raise InputError(f"damp {damp} is not allowed; more than 0, at most 1")
        needs_ranges_only(ranges)
        self.sweep, self.steps, self.damp = sweep, steps, damp
        self.attention, self.ranges = attention, ranges
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
        """Return ranges and weights, and J for them and for what decided the ranges.

        The last J is called ``aespa_layerwise`` where the attention of a layer is of an unknown
        form and its projections were rounded like other layers.
        """
        decision, name = Decision(scores={"minmax": block.error()}), self.name
        if self.ranges is not None and any(site.quantizer.num_bits < OFF for site in block.sites):
            decision |= self.ranges.solve(block)
        for stage in stages(block):
            if not any(x.weight_quantizer.active for site in stage for x in site.linears.values()):
                continue
            sums = collect(block, stage, ("gram",), decision, read=True)
            for site in stage:
                gram = sums[site.name].gram
                assert gram is not None, "it has been asked for"
                parts = self._attention_parts(block, site, gram, decision)
                if not parts and self.attention and _reads_attention(site):
                    name = f"{self.name}_layerwise"
                decision |= self._decide(block, site, parts, Quadratic(gram[None]))
        return decision | Decision(scores={name: block.error(decision)})

    def _attention_parts(
        self, block: Block, site: Site, gram: Tensor, decision: Decision
    ) -> dict[str, list[_Rows]]:
        """Return the parts of every layer of a site that queries, keys and values read; none of
        another site, or where the attention is not known.
        """
        known = attention_of(block, site) if self.attention else None
        found = attention_statistics(block, site, known, decision) if known else None
        if known is None or found is None:
            return {}
        plain = collect(block, [site], ("gram",), decision, read=True, weighted=False)[site.name]
        assert plain.gram is not None, "it has been asked for"
        objectives = (
            Quadratic(gram[None], found.queries),
            Quadratic(plain.gram[None], found.keys),
            Quadratic(found.values),
        )
        parts: dict[str, list[_Rows]] = {}
        for own, objective in zip((known.q, known.k, known.v), objectives, strict=True):
            rows = slice(*own.rows) if own.rows else slice(None)
            parts.setdefault(own.name, []).append((rows, objective))
        return parts

    def _decide(
        self, block: Block, site: Site, parts: dict[str, list[_Rows]], layerwise: Quadratic
    ) -> Decision:
        """Return the weights of the layers of a site."""
        decision = Decision()
        for name, linear in site.linears.items():
            if linear.weight_quantizer.active:
                weight = block.tensor(f"{name}.weight")
                rounded = [
                    self._rounded(weight[rows], objective, linear.weight_quantizer)
                    for rows, objective in parts.get(name, [(slice(None), layerwise)])
                ]
                whole = (
                    torch.cat([getattr(x, own) for x in rounded])
                    for own in ("weight", "low", "high")
                )
                decision |= block.decide_weight(name, *whole)
        return decision

    def _rounded(
        self, weight_OI: Tensor, objective: Quadratic, quantizer: WeightQuantizer
    ) -> _Rounded:
        """Return the best of what was tried, per head where rows meet, else per row."""
        size, symmetric = quantizer.group_size, quantizer.symmetric
        exact_PRI = objective.parts(weight_OI.float())
        settings = quantizer.num_bits, symmetric, weight_OI.dtype
        low, high = weight_ranges(weight_OI, size, symmetric)
        grids = [Grid(low, high, *settings)]
        rows = exact_PRI.flatten(0, 1).split(_rows_of(objective, exact_PRI))
        found = [
            hessian_ranges(weight, gram, settings[0], size, *settings[1:])
            for weight, gram in zip(rows, objective.inputs, strict=True)
        ]
        low, high = (torch.cat(ends) for ends in zip(*found, strict=True))
        grids.append(Grid(low, high, *settings))
        tried = [_nearest(weight_OI, grid) for grid in grids]
        start_PRI = exact_PRI
        if self.sweep:
            done_OI, start_OI = self._swept(exact_PRI, objective, grids[1])
            tried.append(_Rounded(done_OI, grids[1].low, grids[1].high))
            start_PRI = objective.parts(start_OI)
        if objective.outputs is not None:  # what rounding like other layers comes to
            tried.append(_best(tried, exact_PRI, Quadratic(objective.inputs)))
        if self.steps:
            learned = learned_rounding(
                start_PRI, exact_PRI, _steps(grids[1], objective), objective, Annealing(self.steps)
            )
            learned_OI = learned.reshape(weight_OI.shape)
            tried.append(_Rounded(learned_OI, grids[1].low, grids[1].high))
        return _best(tried, exact_PRI, objective)

    def _swept(self, exact_PRI: Tensor, objective: Quadratic, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the swept weight and what it was rounded from, [O, I] float32 each.

        G has no part in it: what an input channel makes up for is the same in all rows.
        """
        rows = _rows_of(objective, exact_PRI)
        pieces = zip(
            exact_PRI.flatten(0, 1).split(rows),
            grid.low.split(rows),
            grid.high.split(rows),
            objective.inputs,
            strict=True,
        )
        done, start = [], []
        for weight, low, high, gram in pieces:
            order = gram.diagonal().argsort(descending=True, stable=True)
            factor = inverse_factor(gram[order][:, order], self.damp)
            own = Grid(low, high, grid.num_bits, grid.symmetric, grid.dtype)
            rounded, _ = sweep(weight, factor, own, order)
            done.append(rounded.float())
            start.append(compensated(weight, rounded, factor, order).float())
        return torch.cat(done), torch.cat(start)


def _reads_attention(site: Site) -> bool:
    """Whether a site is the input of an attention's projections."""
    return site.name.rpartition(".")[2] == "attn_in"


def _rows_of(objective: Quadratic, exact_PRI: Tensor) -> int:
    """Return how many rows of a weight have one matrix H."""
    return exact_PRI.shape[0] * exact_PRI.shape[1] // len(objective.inputs)


def _nearest(weight_OI: Tensor, grid: Grid) -> _Rounded:
    """Return a weight rounded to the nearest values."""
    settings = grid.low, grid.high, grid.num_bits, grid.symmetric, grid.dtype
    return _Rounded(rounded_on(weight_OI.float(), *settings), grid.low, grid.high)


def _steps(grid: Grid, objective: Quadratic) -> Steps:
    """Return the values of a grid as steps, [P, R, G]."""
    scale, zero_point, least, most = grid.qparams()
    own = (objective.parts(x.float()) for x in (scale, least - zero_point, most - zero_point))
    return Steps(*own)


def _best(tried: list[_Rounded], exact_PRI: Tensor, objective: Quadratic) -> _Rounded:
    """Return the one of the least error, per head where rows meet, else per row; the earlier one
    wins a tie.
    """
    least, best = None, tried[0]
    for one in tried:
        error_PR = objective.by_row(one.weight.reshape(exact_PRI.shape) - exact_PRI)
        if objective.outputs is not None:
            error_PR = error_PR.sum(dim=1, keepdim=True).expand_as(error_PR)
        better = torch.zeros_like(error_PR, dtype=torch.bool) if least is None else error_PR < least
        least = error_PR if least is None else torch.where(better, error_PR, least)
        best = best.where(better.reshape(-1), one)
    return best

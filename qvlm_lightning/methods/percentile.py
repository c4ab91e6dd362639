"""Min-max, sequential (eq. 2) and joint (eq. 3) choice of percentiles."""

import itertools
from typing import Literal

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.losses import output_error_terms
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.grid import FINE_PERCENTILES, FINE_RATIOS, checked_candidates
from qvlm_lightning.methods.prefix_tree import exhaustive_table
from qvlm_lightning.methods.site_chains import full_precision_site_inputs, quantized_site_input
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.nn.replay import placed, run_candidates
from qvlm_lightning.nn.site_input import SiteInput

Per = Literal["site", "layer"]


class MinMax(Method):
    """Round-to-nearest on the exact range of the calibration data: percentile 1 everywhere.

    Args:
        objective, token_weights: see :class:`Method`; they decide nothing here but the J that is
            reported.
    """

    name = "rtn"
    uses_tables = True

    def solve(self, block: Block) -> Decision:
        """Return percentile 1 for every site."""
        choice = torch.zeros(len(block.sites), dtype=torch.int64)
        scores = {"minmax": float(block.candidate_errors(choice[None])[0])}
        return block.decide(choice) | Decision(scores=scores)


class SequentialSearch(Method):
    """Choose percentile after percentile in forward order, each for its own output error (eq. 2).

    Args:
        percentiles: candidates of static ranges, from the largest down; default
            ``grid.FINE_PERCENTILES`` (Sec. 4.1 of the paper: ``grid.PAPER_GRID``).
        clip_ratios: candidates in ``dynamic_token`` mode, where a range is a ratio of each token's
            largest magnitude; default ``grid.FINE_RATIOS``.
        per: ``site``: one percentile per group of Linear layers that share an input, judged at the
            output of these layers; ``layer``: one per layer, judged at the layer's output (the
            paper's literal cost).
        objective: how outputs are compared, those of sites and layers included.
        token_weights: see :class:`Method`.
    """

    name = "sequential"
    searches_activations = True
    uses_tables = True

    def __init__(
        self,
        percentiles: list[float] | None = None,
        clip_ratios: list[float] | None = None,
        per: Per = "site",
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        if per not in ("site", "layer"):
            raise InputError(f"per={per!r} is not known; allowed: 'site', 'layer'")
        fine = FINE_PERCENTILES if percentiles is None else percentiles
        ratios = FINE_RATIOS if clip_ratios is None else clip_ratios
        self.percentiles = checked_candidates(fine, "percentiles", 0.5)
        self.clip_ratios = checked_candidates(ratios, "clip_ratios", 0.0)
        self.per: Per = per

    def candidates(self, activation_mode: str) -> list[float]:
        """Return the percentiles, or the clip ratios."""
        return self.clip_ratios if activation_mode == "dynamic_token" else self.percentiles

    def solve(self, block: Block) -> Decision:
        """Return the sequential choice and J at the block's output for it and for min-max."""
        choice = self.choose(block)
        j_minmax, j_sequential = block.candidate_errors(
            torch.stack([torch.zeros_like(choice), choice])
        ).tolist()
        scores = {"minmax": j_minmax, "sequential": j_sequential}
        return block.decide(choice) | Decision(scores=scores)

    def choose(self, block: Block) -> Tensor:
        """Return [number of sites] percentile indices."""
        choice = torch.zeros(len(block.sites), dtype=torch.int64)
        quantized = [call.hidden for call in block.x_q]
        exact = [call.hidden for call in block.x_fp]
        for unit in range(len(block.units)):
            columns = block.columns(unit)
            targets = block.advance_full_precision(exact, unit)
            if self.per == "layer":
                choice[columns] = self._choose_for_layer(block, unit, quantized, targets)
            else:
                choice[columns] = self._choose_per_site(block, unit, exact, quantized)
            quantized = block.advance(quantized, unit, choice[columns])
            exact = targets
        return choice

    def _choose_for_layer(
        self, block: Block, unit: int, quantized: list[Tensor], targets: list[Tensor]
    ) -> int:
        count = len(block.percentiles)
        choices = torch.arange(count)[:, None].expand(-1, len(block.units[unit].sites))
        errors = block.error_table(count)
        for batch in block.mine():
            stacked = quantized[batch].repeat(count, *[1] * (quantized[batch].dim() - 1))
            stacked = run_candidates(
                block.units[unit],
                stacked,
                block.x_q[batch],
                block.tables[unit],
                choices,
                block.given.tensors,
            )
            block.cost.count(layers=count)
            for index, output in enumerate(stacked.split(targets[batch].shape[0])):
                normalized = block.objective == "normalized"
                terms = output_error_terms(output, targets[batch], block.weight(batch), normalized)
                errors[batch, index] = torch.stack([t.to("cpu", torch.float64) for t in terms])
        return best(block.reduce(errors))

    def _choose_per_site(
        self, block: Block, unit: int, exact: list[Tensor], quantized: list[Tensor]
    ) -> Tensor:
        sites = block.units[unit].sites
        choice = torch.zeros(len(sites), dtype=torch.int64)
        x_fp = full_precision_site_inputs(block, unit, exact)
        for index in range(len(sites)):
            x_q = quantized_site_input(block, unit, quantized, choice, index)
            scores = self._score_site(block, unit, index, [x[index] for x in x_fp], x_q)
            choice[index] = best(scores)
        return choice

    def _score_site(
        self, block: Block, unit: int, index: int, x_fp: list[SiteInput], x_q: list[SiteInput]
    ) -> Tensor:
        """Return per candidate the squared error at the output of the Linear layers that read the
        site.
        """
        site, (low, high) = block.units[unit].sites[index], block.tables[unit][index]
        count, normalized = len(block.percentiles), block.objective == "normalized"
        errors = block.error_table(count)
        for batch in block.mine():
            hidden, size = x_q[batch].hidden, x_q[batch].hidden.shape[0]
            mask = x_q[batch].shared_mask(x_fp[batch])
            weight = block.weight(batch, mask, block.place(site))
            stacked = hidden.repeat(count, *[1] * (hidden.dim() - 1))
            sinks = block.x_q[batch].sinks_placed(spread=True)
            given = placed(block.units[unit], block.given.tensors)
            with torch.no_grad(), sinks, given, site.quantizer.candidates(low, high):
                outputs = [linear(stacked) for linear in site.linears.values()]
                targets = [
                    torch.nn.functional.linear(x_fp[batch].hidden, linear.weight, linear.bias)
                    for linear in site.linears.values()
                ]
            block.cost.count(sites=count)
            for target, output in zip(targets, outputs, strict=True):
                for candidate, part in enumerate(output.split(size)):
                    terms = output_error_terms(part, target, weight, normalized)
                    errors[batch, candidate] += torch.stack(
                        [t.to("cpu", torch.float64) for t in terms]
                    )
        return block.reduce(errors)


class JointSearch(Method):
    """Choose the percentiles of a block together, for the error at the block's output (eq. 3).

    All combinations are tried along a prefix tree where there are at most ``exhaustive_limit`` of
    them; beyond, coordinate descent from the better of the sequential and the min-max choice, sweep
    after sweep until nothing changes. Either way J is never above that of those two.

    Args:
        percentiles, clip_ratios, per: see :class:`SequentialSearch`.
        exhaustive_limit: largest table that is searched exhaustively.
        objective, token_weights: see :class:`Method`.
    """

    name = "joint"
    searches_activations = True
    uses_tables = True

    def __init__(
        self,
        percentiles: list[float] | None = None,
        clip_ratios: list[float] | None = None,
        per: Per = "site",
        exhaustive_limit: int = 155,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        self.sequential = SequentialSearch(percentiles, clip_ratios, per)
        self.percentiles = self.sequential.percentiles
        self.clip_ratios, self.per = self.sequential.clip_ratios, self.sequential.per
        self.exhaustive_limit = exhaustive_limit

    def candidates(self, activation_mode: str) -> list[float]:
        """Return the percentiles, or the clip ratios."""
        return self.sequential.candidates(activation_mode)

    def solve(self, block: Block) -> Decision:
        """Return the joint choice and J at the block's output for it, the sequential one and
        min-max.
        """
        minmax = torch.zeros(len(block.sites), dtype=torch.int64)
        sequential = self.sequential.choose(block)
        coordinates = self._coordinates(block)
        if len(block.percentiles) ** len(coordinates) <= self.exhaustive_limit:
            table, choices = exhaustive_table(block, self._options(block))
            joint = choices[best(table, choices)]
        else:
            scores = block.candidate_errors(torch.stack([sequential, minmax]))
            joint = self._descend(
                block, coordinates, (sequential, minmax)[int(scores.argmin())].clone()
            )
        # One stack of candidates, one arithmetic: only then are the three values comparable to the
        # last bit.
        scores = block.candidate_errors(torch.stack([minmax, sequential, joint]))
        joint = (minmax, sequential, joint)[
            2 if scores[2] <= scores.min() else int(scores.argmin())
        ]
        names = ("minmax", "sequential", "joint")
        values = [*scores.tolist()[:2], float(scores.min())]
        return block.decide(joint) | Decision(scores=dict(zip(names, values, strict=True)))

    def _coordinates(self, block: Block) -> list[tuple[int, list[int]]]:
        """Return (unit, columns that move together) in forward order."""
        coordinates = []
        for unit in range(len(block.units)):
            columns = list(range(len(block.sites)))[block.columns(unit)]
            coordinates += (
                [(unit, columns)] if self.per == "layer" else [(unit, [c]) for c in columns]
            )
        return coordinates

    def _options(self, block: Block) -> list[Tensor]:
        """Return per unit all its assignments, [options, sites of the unit]."""
        indices = range(len(block.percentiles))
        options = []
        for unit in block.units:
            if self.per == "layer":
                options.append(torch.tensor(indices)[:, None].expand(-1, len(unit.sites)))
            else:
                options.append(
                    torch.tensor(list(itertools.product(indices, repeat=len(unit.sites))))
                )
        return options

    def _descend(
        self, block: Block, coordinates: list[tuple[int, list[int]]], choice: Tensor
    ) -> Tensor:
        count = len(block.percentiles)
        changed = True
        while changed:
            changed = False
            hidden: list[Tensor] = [call.hidden for call in block.x_q]
            current = 0
            for unit, columns in coordinates:
                while current < unit:
                    hidden = block.advance(hidden, current, choice[block.columns(current)])
                    current += 1
                choices = choice.repeat(count, 1)
                choices[:, columns] = torch.arange(count)[:, None]
                scores = block.candidate_errors(choices, start=unit, hidden=hidden)
                index, before = best(scores), int(choice[columns[0]])
                # Moving on a tie only towards the larger percentile, the descent cannot go round in
                # circles.
                if scores[index] < scores[before] or index < before:
                    choice[columns] = index
                    changed = True
        return choice


def best(scores: Tensor, choices: Tensor | None = None) -> int:
    """Return the index of the smallest score; ties go to the larger percentile (the smaller index).

    Args:
        scores: [C] float64.
        choices: [C, sites] percentile indices in lexicographic order; default: candidate c uses
            percentile c.
    """
    tied = (scores == scores.min()).nonzero().flatten().tolist()
    if not tied:
        raise FloatingPointError(f"the search objective is not finite: {scores.tolist()}")
    return tied[0] if choices is None else min(tied, key=lambda c: choices[c].tolist())

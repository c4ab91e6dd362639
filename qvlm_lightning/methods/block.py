"""A block of units with its cached inputs: what a method sees, and the objective J (eq. 3)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from qvlm_lightning.losses import TINY, output_error_terms
from qvlm_lightning.methods.block_tensors import BlockTensors
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.search_cost import Cost
from qvlm_lightning.methods.token_weights import Gradients, TokenWeights, Uniform
from qvlm_lightning.models.family import Attention, Source
from qvlm_lightning.nn.distributed import all_sum, world
from qvlm_lightning.nn.replay import UnitInput, run_candidates, run_full_precision, run_unit
from qvlm_lightning.nn.structure import Unit
from qvlm_lightning.quant.scheme import OFF

Objective = Literal["normalized", "plain"]
"""How outputs are compared: tokens brought to a mean square of 1, or as they are."""


@dataclass
class Judged:
    """All that J of a decision depends on in a block, and J.

    Attributes:
        tensors: what is decided, or given, each with its version.
        widths: of all quantizers, as far as they are on.
        objective: how outputs are compared.
        token_weights: how much tokens count.
        error: J.
    """

    tensors: dict[str, tuple[Tensor, int]]
    widths: list[int]
    objective: Objective
    token_weights: TokenWeights
    error: float = math.nan

    @classmethod
    def of(cls, block: "Block", decision: Decision | None) -> "Judged":
        """Return a decision that nobody has judged."""
        tensors = block.given.tensors | (decision.tensors if decision is not None else {})
        # tensors made in inference mode count no versions
        now = {n: (x, -1 if x.is_inference() else x._version) for n, x in tensors.items()}
        inputs = [s.quantizer.num_bits if s.quantizer.enabled else OFF for s in block.sites]
        linears = [linear for site in block.sites for linear in site.linears.values()]
        weights = [x.weight_quantizer.num_bits if x.enabled else OFF for x in linears]
        return cls(now, inputs + weights, block.objective, block.token_weights)

    def __eq__(self, other: object) -> bool:
        """Whether J is the same: the very same tensors, unchanged, judged alike."""
        if not isinstance(other, Judged) or self.tensors.keys() != other.tensors.keys():
            return False
        pairs = ((self.tensors[name], other.tensors[name]) for name in self.tensors)
        if not all(x is y and v == w >= 0 for (x, v), (y, w) in pairs):
            return False
        mine, its = self.token_weights, other.token_weights
        alike = type(mine) is type(its) and vars(mine) == vars(its)
        return alike and (self.widths, self.objective) == (other.widths, other.objective)


@dataclass
class Block(BlockTensors):
    """Units decided together.

    A decision is evaluated without changing the model: :meth:`run`, :meth:`error` and
    :meth:`loss` put its tensors in place for as long as they run.

    Attributes:
        units: consecutive units of one tower.
        x_fp: per batch, the call of the first unit in the full-precision chain.
        x_q: the same in the chain whose earlier blocks are quantized (asymmetric, as eq. 1-3 say).
        targets: per batch, the full-precision output of the last unit, [B, T, D].
        percentiles: the candidates of ranges, from the largest down.
        tables: per unit, per site: (low, high), each [P, *shape], of the candidates.
        sources: site -> what makes its input, with full names, as far as the family knows.
        attentions: unit -> its attention, likewise.
        objective: how J compares outputs.
        token_weights: how much each token counts in J and in statistics.
        given: what earlier steps of a chain have decided; it lies under every decision.
        stored: types in which changed weights will be stored (``Structure.stored``).
        gradients: module -> size of the loss's gradient at its output, per kind of token; where the
            token weights ask for it.
        cost: what has been run.
        judged: the decision that was judged last, of several the best, with its J.
    """

    units: list[Unit]
    x_fp: list[UnitInput]
    x_q: list[UnitInput]
    targets: list[Tensor]
    percentiles: list[float]
    tables: list[list[tuple[Tensor, Tensor]]]
    sources: Mapping[str, Source] = field(default_factory=dict)
    attentions: Mapping[str, Attention] = field(default_factory=dict)
    objective: Objective = "normalized"
    token_weights: TokenWeights = field(default_factory=Uniform)
    stored: Mapping[str, torch.dtype] = field(default_factory=dict)
    given: Decision = field(default_factory=Decision)
    gradients: Gradients = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    judged: list["Judged"] = field(default_factory=list)
    rounded: dict[str, tuple[Tensor, int, Tensor]] = field(default_factory=dict)

    # --- single decisions -------------------------------------------------------------------------

    def run(
        self,
        batch: int,
        decision: Decision | None = None,
        units: slice = slice(None),
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Return the output of a batch in the quantized chain, [B, T, D]; gradients reach the
        decision's tensors.

        Args:
            batch: its number.
            decision: what would be in place; ``None`` for what is, or is given.
            units: which of the block's units.
            hidden: input of the first of them; default: the block's.
        """
        call = self.x_q[batch]
        hidden = call.hidden if hidden is None else hidden
        for unit in self.units[units]:
            self.cost.count(layers=1)
            hidden = run_unit(unit, hidden, call, tensors=self.decided(decision))
        return hidden

    def loss(self, batch: int, decision: Decision) -> Tensor:
        """Return J of a batch, differentiable in the decision's tensors; a scalar, float64."""
        terms = self.terms(self.run(batch, decision), batch)
        return terms[0] / terms[1].clamp_min(TINY)

    @torch.no_grad()
    def error(self, decision: Decision | None = None) -> float:
        """Return J of a decision, over all batches and processes."""
        return float(self.errors([decision])[0])

    @torch.no_grad()
    def errors(self, decisions: Sequence[Decision | None]) -> Tensor:
        """Return J of several decisions, [C] float64, one after another.

        One that was judged last, such as by the step of a chain before this one, is not run again.
        """
        asked = [Judged.of(self, decision) for decision in decisions]
        known = [next((old.error for old in self.judged if old == new), None) for new in asked]
        errors = self.error_table(len(decisions))
        for index, decision in enumerate(decisions):
            if known[index] is None:
                for batch in self.mine():
                    self.score(errors, batch, self.run(batch, decision), first=index)
        found = self.reduce(errors)
        for index, error in enumerate(known):
            if error is not None:
                found[index] = error
        for one, error in zip(asked, found.tolist(), strict=True):
            one.error = error
        self.judged[:] = [min(asked, key=lambda one: one.error)]
        return found

    def terms(self, output: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Return numerator and denominator of a batch's J."""
        normalized = self.objective == "normalized"
        return output_error_terms(output, self.targets[batch], self.weight(batch), normalized)

    def weight(
        self, batch: int, mask: Tensor | None = None, at: str | None = None
    ) -> Tensor | None:
        """Return how much each token of a batch counts, [B, T]; ``None`` for 1 everywhere.

        Args:
            batch: its number.
            mask: [B, T] bool, tokens that count, such as those of a site; default: the batch's.
            at: the module at whose output they are compared; default: the last unit.
        """
        call = self.x_q[batch]
        weights = self.token_weights.at(self.gradients, at or self.units[-1].name)
        return weights(call.kind, call.mask if mask is None else mask)

    # --- candidates of ranges, stacked ------------------------------------------------------------

    def columns(self, unit: int) -> slice:
        """Return which columns of an assignment belong to a unit."""
        first = sum(len(u.sites) for u in self.units[:unit])
        return slice(first, first + len(self.units[unit].sites))

    def decide(self, choice: Tensor) -> Decision:
        """Return the decision for one candidate per site.

        Args:
            choice: [number of sites] int64 percentile indices.
        """
        tables = [table for unit in self.tables for table in unit]
        decision = Decision()
        for site, index, (low, high) in zip(self.sites, choice.tolist(), tables, strict=True):
            name = f"{next(iter(site.linears))}.input_quantizer"
            ratio = torch.ones_like(site.quantizer.low)
            decision.tensors |= {
                f"{name}.low": low[index].expand_as(ratio).clone(),
                f"{name}.high": high[index].expand_as(ratio).clone(),
                f"{name}.percentile": torch.tensor(self.percentiles[index], dtype=torch.float64),
                # what was learned belongs to the range that is replaced
                f"{name}.low_ratio": ratio,
                f"{name}.high_ratio": ratio.clone(),
            }
        return decision

    @torch.no_grad()
    def advance(self, hidden: Sequence[Tensor], unit: int, choice: Tensor) -> list[Tensor]:
        """Run one unit with one assignment on every batch: [n_sites of the unit] int64 -> hidden
        states.
        """
        out = []
        for call, h in zip(self.x_q, hidden, strict=True):
            self.cost.count(layers=1, repeated=True)
            ran = self.units[unit], h, call, self.tables[unit], choice[None]
            out.append(run_candidates(*ran, self.given.tensors))
        return out

    @torch.no_grad()
    def candidate_errors(
        self, choices: Tensor, start: int = 0, hidden: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return J of C assignments, all evaluated as one batch (eq. 3, docs/paper.md).

        Args:
            choices: [C, number of sites of the block] int64 percentile indices.
            start: first unit to run; ``hidden`` then holds its input per batch.
            hidden: per batch [B, T, D], common to all candidates; default: the block's quantized
                input.

        Returns:
            [C] float64, weighted squared error per element, over all batches and processes.
        """
        count = choices.shape[0]
        hidden = [call.hidden for call in self.x_q] if hidden is None else hidden
        errors = self.error_table(count)
        for batch in self.mine():
            stacked = hidden[batch].repeat(count, *[1] * (hidden[batch].dim() - 1))
            for index in range(start, len(self.units)):
                stacked = run_candidates(
                    self.units[index],
                    stacked,
                    self.x_q[batch],
                    self.tables[index],
                    choices[:, self.columns(index)],
                    self.given.tensors,
                )
                self.cost.count(layers=count)
            self.score(errors, batch, stacked)
        return self.reduce(errors)

    # --- shares of processes ----------------------------------------------------------------------

    def error_table(self, count: int) -> Tensor:
        """Return zeros [batches, count, 2]: numerator and denominator of J."""
        return torch.zeros(len(self.x_q), count, 2, dtype=torch.float64)

    def mine(self) -> range:
        """Return the batches this process evaluates; every (batch, group of candidates) has one
        owner.
        """
        rank, size = world()
        return range(rank, len(self.x_q), size)

    def score(self, errors: Tensor, batch: int, stacked: Tensor, first: int = 0) -> None:
        """Write the errors of stacked outputs [C * B, T, D] into ``errors[batch, first : first +
        C]``.
        """
        for index, output in enumerate(stacked.split(self.targets[batch].shape[0])):
            numerator, denominator = self.terms(output, batch)
            errors[batch, first + index, 0] = numerator
            errors[batch, first + index, 1] = denominator

    @staticmethod
    def reduce(errors: Tensor) -> Tensor:
        """Return J [C] from the table that the processes filled in shares; the order of the sum is
        fixed.

        An expert that no token of the search reached has J = 0 for every candidate.
        """
        total = all_sum(errors).sum(dim=0)
        return total[:, 0] / total[:, 1].clamp_min(TINY)

    @torch.no_grad()
    def advance_full_precision(self, hidden: Sequence[Tensor], unit: int) -> list[Tensor]:
        """Run one unit without quantizers on every batch."""
        return [
            run_full_precision(self.units[unit], h, call)
            for h, call in zip(hidden, self.x_fp, strict=True)
        ]

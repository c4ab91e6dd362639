"""A block of units with its cached inputs: the objective of the joint search (eq. 3)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qvlm_lightning.losses import output_error_terms
from qvlm_lightning.nn.distributed import all_sum, is_main, world
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.quantizer import ActivationQuantizer
from qvlm_lightning.nn.replay import UnitInput, run_candidates, run_unit
from qvlm_lightning.nn.site_input import SiteInput, site_inputs
from qvlm_lightning.nn.structure import Site, Unit


@dataclass
class Cost:
    """What a search has run: evaluations of one layer on one batch, and of one site's Linear
    layers.

    Work that every process repeats is counted once, so that the sum over the processes is what one
    process would run.
    """

    layer_forwards: int = 0
    site_forwards: int = 0

    def count(self, layers: int = 0, sites: int = 0, repeated: bool = False) -> None:
        """Add evaluations; ``repeated`` says that every process makes the same ones."""
        if not repeated or is_main():
            self.layer_forwards += layers
            self.site_forwards += sites


@dataclass
class Block:
    """Units searched together.

    Attributes:
        units: consecutive units of one tower.
        x_fp: per batch, the call of the first unit in the full-precision chain.
        x_q: the same in the chain whose earlier blocks are quantized (asymmetric, as eq. 1-3 say).
        targets: per batch, the full-precision output of the last unit, [B, T, D].
        percentiles: the candidates, from 1.0 downwards.
        tables: per unit, per site: (low, high), each [P, *shape].
        normalized: how J compares outputs, see :func:`~qvlm_lightning.losses.output_error_terms`; a
            method says so before it asks for J.
    """

    units: list[Unit]
    x_fp: list[UnitInput]
    x_q: list[UnitInput]
    targets: list[Tensor]
    percentiles: list[float]
    tables: list[list[tuple[Tensor, Tensor]]]
    cost: Cost = field(default_factory=Cost)
    normalized: bool = False

    @property
    def sites(self) -> list[Site]:
        """All sites in forward order."""
        return [site for unit in self.units for site in unit.sites]

    def columns(self, unit: int) -> slice:
        """Return which columns of an assignment belong to a unit."""
        first = sum(len(u.sites) for u in self.units[:unit])
        return slice(first, first + len(self.units[unit].sites))

    @torch.no_grad()
    def advance(self, hidden: Sequence[Tensor], unit: int, choice: Tensor) -> list[Tensor]:
        """Run one unit with one assignment on every batch: [n_sites of the unit] int64 -> hidden
        states.
        """
        out = []
        for call, h in zip(self.x_q, hidden, strict=True):
            self.cost.count(layers=1, repeated=True)
            out.append(run_candidates(self.units[unit], h, call, self.tables[unit], choice[None]))
        return out

    @torch.no_grad()
    def objective(
        self, choices: Tensor, start: int = 0, hidden: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return J of C assignments, all evaluated as one batch (eq. 3, docs/paper.md).

        Args:
            choices: [C, number of sites of the block] int64 percentile indices.
            start: first unit to run; ``hidden`` then holds its input per batch.
            hidden: per batch [B, T, D], common to all candidates; default: the block's quantized
                input.

        Returns:
            [C] float64, masked squared error per element, over all batches and processes.
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
                )
                self.cost.count(layers=count)
            self.score(errors, batch, stacked)
        return self.reduce(errors)

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
        target, mask = self.targets[batch], self.x_q[batch].mask
        for index, output in enumerate(stacked.split(target.shape[0])):
            numerator, denominator = output_error_terms(output, target, mask, self.normalized)
            errors[batch, first + index, 0] = numerator
            errors[batch, first + index, 1] = denominator

    @staticmethod
    def reduce(errors: Tensor) -> Tensor:
        """Return J [C] from the table that the processes filled in shares; the order of the sum is
        fixed.

        An expert that no token of the search reached has J = 0 for every candidate.
        """
        total = all_sum(errors).sum(dim=0)
        return total[:, 0] / total[:, 1].clamp_min(1)

    @torch.no_grad()
    def full_precision_site_inputs(
        self, unit: int, hidden: Sequence[Tensor]
    ) -> list[list[SiteInput]]:
        """Return per batch the input of every site of a unit in the full-precision chain."""
        owner = self.units[unit]
        inputs = []
        for h, call in zip(hidden, self.x_fp, strict=True):
            with site_inputs(owner.sites, h, call.mask) as seen:
                self._run_full_precision(owner, h, call)
            self.cost.count(layers=1, repeated=True)
            inputs.append([seen[site.name] for site in owner.sites])
        return inputs

    @torch.no_grad()
    def quantized_site_input(
        self, unit: int, hidden: Sequence[Tensor], choice: Tensor, site: int
    ) -> list[SiteInput]:
        """Return per batch the input of one site in the quantized chain, the unit's earlier sites
        at ``choice``.
        """
        owner = self.units[unit]
        inputs = []
        for h, call in zip(hidden, self.x_q, strict=True):
            with site_inputs([owner.sites[site]], h, call.mask) as seen:
                run_candidates(owner, h, call, self.tables[unit], choice[None])
            self.cost.count(layers=1, repeated=True)
            inputs.append(seen[owner.sites[site].name])
        return inputs

    @torch.no_grad()
    def advance_full_precision(self, hidden: Sequence[Tensor], unit: int) -> list[Tensor]:
        """Run one unit without quantizers on every batch."""
        return [
            self._run_full_precision(self.units[unit], h, call)
            for h, call in zip(hidden, self.x_fp, strict=True)
        ]

    @staticmethod
    def _run_full_precision(unit: Unit, hidden: Tensor, call: UnitInput) -> Tensor:
        modules: list[ActivationQuantizer | QuantLinear] = [site.quantizer for site in unit.sites]
        modules += [linear for site in unit.sites for linear in site.linears.values()]
        before = [module.enabled for module in modules]
        for module in modules:
            module.enabled = False
        try:
            return run_unit(unit, hidden, call)
        finally:
            for module, on in zip(modules, before, strict=True):
                module.enabled = on

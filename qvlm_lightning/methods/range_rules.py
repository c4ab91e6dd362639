"""Ranges by rules of thumb that look at one site's activations alone, as calibration tools ship."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.grid import FINE_PERCENTILES, FINE_RATIOS, checked_candidates
from qvlm_lightning.methods.site_statistics import inputs_of
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.nn.distributed import all_sum, gather_objects
from qvlm_lightning.nn.site_input import SiteInput
from qvlm_lightning.nn.structure import Site
from qvlm_lightning.quant.scheme import OFF


class LeastSquares(Method):
    """Range of the least squared error of the activations themselves, site by site.

    The error of quantizing the full-precision input of a site, summed over the calibration pairs
    (``mse`` observers of other tools).

    Args:
        percentiles: candidates of static ranges; see ``SequentialSearch``.
        clip_ratios: candidates in ``dynamic_token`` mode.
        objective: see :class:`Method`; decides nothing here but the J that is reported.
        token_weights: see there.
    """

    name = "mse"
    searches_activations = True
    uses_tables = True

    def __init__(
        self,
        percentiles: list[float] | None = None,
        clip_ratios: list[float] | None = None,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        fine = FINE_PERCENTILES if percentiles is None else percentiles
        ratios = FINE_RATIOS if clip_ratios is None else clip_ratios
        self.percentiles = checked_candidates(fine, "percentiles", 0.5)
        self.clip_ratios = checked_candidates(ratios, "clip_ratios", 0.0)

    def candidates(self, activation_mode: str) -> list[float]:
        """Return the percentiles, or the clip ratios."""
        return self.clip_ratios if activation_mode == "dynamic_token" else self.percentiles

    @torch.no_grad()
    def solve(self, block: Block) -> Decision:
        """Return the choice, and J at the block's output for it and for min-max."""
        errors = self._errors(block)
        choice = errors.argmin(dim=1)
        minmax, own = block.candidate_errors(torch.stack([torch.zeros_like(choice), choice]))
        scores = {"minmax": float(minmax), self.name: float(own)}
        return block.decide(choice) | Decision(scores=scores)

    @staticmethod
    def _errors(block: Block) -> Tensor:
        """Return the weighted squared error of every candidate, [sites, P] float64; ties to the
        larger range.
        """
        total = torch.zeros(len(block.sites), len(block.percentiles), dtype=torch.float64)
        rows = iter(total)
        for unit, tables in zip(block.units, block.tables, strict=True):
            own = [(*pair, next(rows)) for pair in zip(unit.sites, tables, strict=True)]
            for batch, seen in _exact_inputs(block, unit.sites):
                for site, (low, high), row in own:
                    row += _squared_errors(block, batch, site, seen[site.name], low, high)
        return all_sum(total)


class MovingAverage(Method):
    """Exponential moving average of the minima and maxima of one calibration sample after another.

    The default observer of static activations in llm-compressor, with its averaging constant. In
    ``dynamic_token`` mode there is no range to average: min-max of each token.

    Args:
        constant: weight of a new sample.
        objective: see :class:`Method`; decides nothing here but the J that is reported.
        token_weights: see there; tokens of weight 0 are left out.
    """

    name = "moving_average"
    searches_activations = True
    uses_tables = True
    pairs = "all"

    def __init__(
        self,
        constant: float = 0.01,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        if not 0 < constant <= 1:
            raise InputError(f"constant {constant} is not allowed; more than 0, at most 1")
        self.constant = constant

    @torch.no_grad()
    def solve(self, block: Block) -> Decision:
        """Return the averaged ranges, and J at the block's output for them and for min-max."""
        minmax = block.decide(torch.zeros(len(block.sites), dtype=torch.int64))
        decision = Decision(dict(minmax.tensors))
        for unit in block.units:
            sites = [s for s in unit.sites if s.quantizer.mode != "dynamic_token"]
            sites = [s for s in sites if s.quantizer.num_bits < OFF]
            for site, (low, high) in zip(sites, self._averaged(block, sites), strict=True):
                name = f"{next(iter(site.linears))}.input_quantizer"
                decision.tensors |= {f"{name}.low": low, f"{name}.high": high}
        errors = block.errors([minmax, decision]).tolist()
        scores = dict(zip(("minmax", self.name), errors, strict=True))
        return decision | Decision(scores=scores)

    def _averaged(self, block: Block, sites: Sequence[Site]) -> list[tuple[Tensor, Tensor]]:
        """Return the averaged ranges of sites of a unit, in the shapes of their quantizers."""
        mine: dict[str, list[Any]] = {site.name: [] for site in sites}
        for batch, seen in _exact_inputs(block, sites):
            for site in sites:
                own, like = seen[site.name], site.quantizer.low
                weight = block.weight(batch, own.mask)
                for row, x_TD in enumerate(own.hidden.reshape(-1, *own.hidden.shape[-2:])):
                    kept = x_TD if weight is None else x_TD[weight[row] != 0]
                    if len(kept):
                        ends = [x.cpu() for x in _ends(kept.float(), like)]
                        mine[site.name].append(((batch, row), ends))
        shares = gather_objects(mine)
        return [self._average([s for x in shares for s in x[site.name]], site) for site in sites]

    def _average(self, samples: list[Any], site: Site) -> tuple[Tensor, Tensor]:
        """Return the average of the ranges of samples, each with its place in the order."""
        samples.sort(key=lambda sample: sample[0])
        low, high = samples[0][1]
        for _, (lowest, highest) in samples[1:]:
            low = low + self.constant * (lowest - low)
            high = high + self.constant * (highest - high)
        return low.to(site.quantizer.low), high.to(site.quantizer.low)


def _exact_inputs(
    block: Block, sites: Sequence[Site]
) -> Iterator[tuple[int, dict[str, SiteInput]]]:
    """Yield number and inputs of the sites of a unit in full precision, from one pass."""
    return inputs_of(block, sites, chain="full_precision") if sites else iter(())


def _squared_errors(
    block: Block, batch: int, site: Site, seen: SiteInput, low: Tensor, high: Tensor
) -> Tensor:
    """Return the weighted squared error of every candidate at a site in a batch, [P] float64."""
    weight, errors = block.weight(batch, seen.mask, block.place(site)), []
    for index in range(len(low)):
        one = slice(index, index + 1)
        placed = block.x_fp[batch].sinks_placed(spread=True)
        with placed, site.quantizer.candidates(low[one], high[one]):
            square = (site.quantizer(seen.hidden) - seen.hidden).float().square().sum(-1)
        errors.append((square if weight is None else square * weight).double().sum())
    return torch.stack(errors).cpu()


def _ends(x_TD: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum of one sample in the shape of a range."""
    if like.dim() == 2:  # per position
        return x_TD.amin(dim=1, keepdim=True), x_TD.amax(dim=1, keepdim=True)
    return x_TD.aminmax(dim=0) if like.dim() == 1 else x_TD.aminmax()

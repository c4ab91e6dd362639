"""Ranges by rules of thumb that look at one site's activations alone, as calibration tools ship."""

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.grid import FINE_PERCENTILES, FINE_RATIOS, checked_candidates
from qvlm_lightning.methods.site_statistics import inputs
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.nn.distributed import all_sum, gather_objects
from qvlm_lightning.nn.structure import Site


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
        tables = [table for unit in block.tables for table in unit]
        errors = [
            self._errors(block, site, low, high)
            for site, (low, high) in zip(block.sites, tables, strict=True)
        ]
        choice = torch.stack([e.argmin() for e in errors])
        minmax, own = block.candidate_errors(torch.stack([torch.zeros_like(choice), choice]))
        scores = {"minmax": float(minmax), self.name: float(own)}
        return block.decide(choice) | Decision(scores=scores)

    @staticmethod
    def _errors(block: Block, site: Site, low: Tensor, high: Tensor) -> Tensor:
        """Return the weighted squared error of every candidate, [P] float64; ties to the larger."""
        total = torch.zeros(len(low), dtype=torch.float64)
        for batch, seen in inputs(block, site, chain="full_precision"):
            weight = block.weight(batch, seen.mask, block.place(site))
            for index in range(len(low)):
                one = slice(index, index + 1)
                placed = block.x_fp[batch].sinks_placed(spread=True)
                with placed, site.quantizer.candidates(low[one], high[one]):
                    square = (site.quantizer(seen.hidden) - seen.hidden).double().square().sum(-1)
                total[index] += float((square if weight is None else square * weight).sum())
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
        for site in block.sites:
            if site.quantizer.mode != "dynamic_token" and site.quantizer.num_bits < 16:
                name = f"{next(iter(site.linears))}.input_quantizer"
                low, high = self._averaged(block, site)
                decision.tensors |= {f"{name}.low": low, f"{name}.high": high}
        errors = block.errors([minmax, decision]).tolist()
        scores = dict(zip(("minmax", self.name), errors, strict=True))
        return decision | Decision(scores=scores)

    def _averaged(self, block: Block, site: Site) -> tuple[Tensor, Tensor]:
        """Return the averaged range in the shape of the site's quantizer."""
        like = site.quantizer.low
        mine = []
        for batch, seen in inputs(block, site, chain="full_precision"):
            weight = block.weight(batch, seen.mask)
            for row, x_TD in enumerate(seen.hidden.reshape(-1, *seen.hidden.shape[-2:])):
                kept = x_TD if weight is None else x_TD[weight[row] != 0]
                if len(kept):
                    mine.append(((batch, row), [x.cpu() for x in _ends(kept.float(), like)]))
        samples = sorted((s for share in gather_objects(mine) for s in share), key=lambda s: s[0])
        low, high = samples[0][1]
        for _, (lowest, highest) in samples[1:]:
            low = low + self.constant * (lowest - low)
            high = high + self.constant * (highest - high)
        return low.to(like), high.to(like)


def _ends(x_TD: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return minimum and maximum of one sample in the shape of a range."""
    if like.dim() == 2:  # per position
        return x_TD.amin(dim=1, keepdim=True), x_TD.amax(dim=1, keepdim=True)
    return x_TD.aminmax(dim=0) if like.dim() == 1 else x_TD.aminmax()

"""AWQ: activation-aware weight quantization (Lin et al., MLSys 2024, arXiv:2306.00978)."""

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.fold_groups import FoldGroup
from qvlm_lightning.methods.requirements import needs_quantized_weights
from qvlm_lightning.methods.scale_search import ScaleSearch, magnitude_factors, mean_magnitudes
from qvlm_lightning.methods.site_statistics import Chain, collect, stages
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.quant.weight_ranges import searched_ranges

CLIP_RATIOS = tuple(1 - step / 20 for step in range(10))
"""Of minimum and maximum, among which a weight's range is chosen."""


class AWQ(ScaleSearch):
    """Scales channels by a power of their mean magnitude, then clips the weights.

    ``min_s ||Q(W s)(X / s) - W X||^2`` (eq. 4 and 5), where quantized activations are so in the
    search too. The range of each output channel, or group, is then the one that changes the output
    least.

    Args:
        grid: number of exponents that are tried.
        clip: whether ranges of weights are searched behind the scales.
        inputs: see :class:`ScaleSearch`.
        objective: see :class:`Method`.
        token_weights: see there; they count in the search and in the choice of the range.
    """

    name = "awq"

    def __init__(
        self,
        grid: int = 20,
        clip: bool = True,
        inputs: Chain = "full_precision",
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(inputs, 2.0, False, objective, token_weights)
        if grid < 1:
            raise InputError(f"grid {grid} is not allowed; at least 1")
        self.grid, self.clip = grid, clip

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that leaves all weights alone."""
        needs_quantized_weights(self.name, scheme)

    @torch.no_grad()
    def factors(self, block: Block, group: FoldGroup, decision: Decision) -> Tensor:
        """Return powers of the channels' mean magnitude."""
        return magnitude_factors(mean_magnitudes(block, group, decision, self.inputs), self.grid)

    @torch.no_grad()
    def refine(self, block: Block, unit: int, decision: Decision) -> Decision:
        """Return the ranges of the unit's scaled weights."""
        if not self.clip:
            return decision
        mine = {site.name for site in block.units[unit].sites}
        for stage in stages(block):
            sites = [s for s in stage if s.name in mine]
            active = [x.weight_quantizer.active for s in sites for x in s.linears.values()]
            if any(active):
                sums = collect(block, sites, ("gram",), decision, self.inputs)
                for site in sites:
                    for name in site.linears:
                        if site.linears[name].weight_quantizer.active:
                            gram = sums[site.name].gram
                            decision |= self._clipped(block, name, gram, decision)
        return decision

    @staticmethod
    def _clipped(block: Block, name: str, gram: Tensor | None, decision: Decision) -> Decision:
        """Return the range of a layer's weight that changes its output least."""
        own, weight = block.linear(name).weight_quantizer, block.tensor(f"{name}.weight", decision)
        low, high = searched_ranges(
            weight, CLIP_RATIOS, own.num_bits, own.group_size, own.symmetric, gram
        )
        return block.decide_weight(name, weight, low, high)

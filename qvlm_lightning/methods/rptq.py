"""RPTQ: channels with similar ranges share one (Yuan et al., 2023, arXiv:2304.01089)."""

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.requirements import needs_quantized_activations
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.quant.clusters import clusters
from qvlm_lightning.quant.scheme import OFF, Scheme


class RPTQ(Method):
    """Clusters the channels of every input by minimum and maximum, and gives each cluster a range.

    A kernel would put the channels of a cluster side by side, by reordering the rows of the layer
    before and the columns of the layers behind (Sec. 3.2 and 3.3). That changes names and no
    number, so nothing is reordered here: channels of a cluster hold the same range. In a tower,
    whose ranges are those of positions, positions are clustered.

    Args:
        clusters: most of them per input; all channels apart where there are no more channels.
        objective: see :class:`Method`; decides nothing here but the J that is reported.
        token_weights: see there.
    """

    name = "rptq"
    searches_activations = True
    uses_tables = True

    def __init__(
        self,
        clusters: int = 32,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        if clusters < 1:
            raise InputError(f"{clusters} clusters are not allowed; at least 1")
        self.clusters = clusters

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme whose channels have no ranges of their own."""
        needs_quantized_activations(self.name, scheme)
        if scheme.activation_mode != "static_channel":
            raise InputError(
                f"method {self.name} shares ranges among channels, which activation_mode "
                f"{scheme.activation_mode!r} has not; allowed: activation_mode static_channel"
            )

    @torch.no_grad()
    def solve(self, block: Block) -> Decision:
        """Return the ranges, and J at the block's output for them and for one per channel."""
        minmax = block.decide(torch.zeros(len(block.sites), dtype=torch.int64))
        decision = Decision(dict(minmax.tensors))
        for site in block.sites:
            if site.quantizer.num_bits < OFF:
                name = f"{next(iter(site.linears))}.input_quantizer"
                low, high = (minmax.tensors[f"{name}.{own}"] for own in ("low", "high"))
                low, high = shared_ranges(low, high, self.clusters)
                decision.tensors |= {f"{name}.low": low, f"{name}.high": high}
        errors = block.errors([minmax, decision]).tolist()
        return decision | Decision(scores=dict(zip(("minmax", self.name), errors, strict=True)))


def shared_ranges(low: Tensor, high: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ranges of which all in a cluster are the same: the least that holds every one of them.

    Args:
        low: lower bounds, of any shape.
        high: upper bounds, of the same.
        count: most clusters.

    Example:
        >>> low, high = torch.tensor([-1.0, -8.0, -2.0]), torch.tensor([2.0, 9.0, 1.0])
        >>> [x.tolist() for x in shared_ranges(low, high, 2)]
        [[-2.0, -8.0, -2.0], [2.0, 9.0, 2.0]]
    """
    place = clusters(torch.stack([low.flatten(), high.flatten()], dim=-1), count)
    least = torch.full_like(low.flatten(), torch.inf)
    least = least.scatter_reduce(0, place, low.flatten(), "amin")
    most = torch.full_like(high.flatten(), -torch.inf)
    most = most.scatter_reduce(0, place, high.flatten(), "amax")
    return least[place].reshape(low.shape), most[place].reshape(high.shape)

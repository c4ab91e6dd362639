"""Z-Fold: scales of input channels, folded into what comes before (Jeon et al., EMNLP 2023)."""

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.fold_groups import FoldGroup
from qvlm_lightning.methods.requirements import needs_quantized_weights
from qvlm_lightning.methods.scale_search import ScaleSearch
from qvlm_lightning.methods.site_statistics import Chain, collect
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.quant.z_fold import FoldedLayer, channel_scales


class ZFold(ScaleSearch):
    """Gives the grid of every weight scales of its inputs beside those of its outputs.

    ``W = s W_int z``: z, shared by the layers that read the same channels, goes into the norm or
    the layer before, so the grid that is stored is an ordinary one. It is found in turn with the
    rounded weight (:func:`~qvlm_lightning.quant.z_fold.channel_scales`), and taken where it lowers
    the error at the output. A step of aespa, and before any other method that rounds.

    Args:
        rounds: most of them.
        inputs: where Gram matrices come from; see :class:`ScaleSearch`.
        norms_only: leave the layers alone that read another Linear layer.
        objective: see :class:`Method`.
        token_weights: see there; they count in Gram matrices and in the choice.
    """

    name = "zfold"

    def __init__(
        self,
        rounds: int = 30,
        inputs: Chain = "full_precision",
        norms_only: bool = False,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(inputs, 2.0, norms_only, objective, token_weights)
        if rounds < 1:
            raise InputError(f"rounds {rounds} is not allowed; at least 1")
        self.rounds = rounds

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that leaves all weights alone."""
        needs_quantized_weights(self.name, scheme)

    @torch.no_grad()
    def factors(self, block: Block, group: FoldGroup, decision: Decision) -> Tensor:
        """Return 1, and ``1 / z``."""
        sums = collect(block, group.sites, ("gram",), decision, self.inputs)
        layers = []
        for site in group.sites:
            gram = sums[site.name].gram
            assert gram is not None, "it has been asked for"
            channels = group.source.channels(len(gram)).to(gram.device)
            for name, linear in site.linears.items():
                own = linear.weight_quantizer
                if own.active:
                    weight = block.tensor(f"{name}.weight", decision)
                    settings = own.num_bits, own.group_size, own.symmetric
                    layers.append(FoldedLayer(weight, gram, channels, *settings))
        width = group.sites[0].leader.in_features // group.source.repeats
        ones = torch.ones(1, width, dtype=torch.float64, device=group.sites[0].leader.weight.device)
        if not layers:
            return ones
        return torch.cat([ones, 1 / channel_scales(layers, width, self.rounds)[None]])

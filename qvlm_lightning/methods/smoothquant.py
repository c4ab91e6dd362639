"""SmoothQuant: outliers of activations moved into weights (Xiao et al., ICML 2023,
arXiv:2211.10438).
"""

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.fold_groups import FoldGroup
from qvlm_lightning.methods.requirements import needs_quantized_activations
from qvlm_lightning.methods.scale_search import ScaleSearch
from qvlm_lightning.methods.scaling import channel_extremes
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.nn.folding import per_channel
from qvlm_lightning.quant.scheme import Scheme

LEAST = 1e-5


class SmoothQuant(ScaleSearch):
    """Divides inputs by ``max|X_j|^a / max|W_j|^(1 - a)`` (eq. 4), behind norms as the paper does.

    Args:
        alphas: one migration strength a, or several, of which the one with the least error at the
            output is taken for each group.
        norms_only: scale only what norms make; otherwise values and hidden channels of the MLP too.
        objective: see :class:`Method`.
        token_weights: see there; they count in the choice among several.
    """

    name = "smoothquant"

    def __init__(
        self,
        alphas: list[float] | None = None,
        norms_only: bool = True,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__("full_precision", 2.0, norms_only, objective, token_weights)
        self.alphas = [0.5] if alphas is None else alphas
        if not self.alphas or not all(0 <= a <= 1 for a in self.alphas):
            raise InputError(f"alphas {self.alphas} are not allowed; one or more, each from 0 to 1")

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that leaves all activations alone."""
        needs_quantized_activations(self.name, scheme)

    @torch.no_grad()
    def factors(self, block: Block, group: FoldGroup, decision: Decision) -> Tensor:
        """Return the scale of every migration strength."""
        x_S = w_S = None
        found = channel_extremes(block, group.sites, decision, self.inputs)
        for site in group.sites:
            size = torch.maximum(found[site.name][0].abs(), found[site.name][1].abs())
            one = per_channel(group.source, size.reshape(-1, size.shape[-1]).amax(0), "amax")
            x_S = one if x_S is None else torch.maximum(x_S, one)
            for name in site.linears:
                columns = block.tensor(f"{name}.weight", decision).float().abs().amax(dim=0)
                one = per_channel(group.source, columns, "amax")
                w_S = one if w_S is None else torch.maximum(w_S, one)
        assert x_S is not None, "a group has sites"
        assert w_S is not None, "a site has layers"
        x_S, w_S = x_S.double().clamp_min(LEAST), w_S.double().clamp_min(LEAST)
        scales = [(x_S**a / w_S ** (1 - a)).clamp_min(LEAST) for a in self.alphas]
        return torch.stack(scales)

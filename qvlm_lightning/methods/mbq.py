"""MBQ: modality-balanced quantization (Li et al., CVPR 2025, arXiv:2412.19509)."""

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.fold_groups import FoldGroup
from qvlm_lightning.methods.requirements import needs_quantized_weights
from qvlm_lightning.methods.scale_search import ScaleSearch, magnitude_factors, mean_magnitudes
from qvlm_lightning.methods.site_statistics import Chain
from qvlm_lightning.methods.token_weights import ModalityBalance, TokenWeights
from qvlm_lightning.quant.scheme import Scheme


class MBQ(ScaleSearch):
    """Scales channels for the least absolute error, vision and text weighted by their gradients.

    ``min_e rho ||W X_v - Q(W e) Q(X_v / e)|| + ||W X_l - Q(W e) Q(X_l / e)||`` with rho the
    ratio of the loss's gradients at the output (:class:`ModalityBalance`). Where activations stay
    at 16 bits their Q is the identity (the paper's W3A16), otherwise inputs are divided and
    quantized as they will be (its W4A8).

    Args:
        grid: number of exponents of the mean magnitude that are tried.
        power: p of the error; the paper's is 1 (MAE).
        inputs: see :class:`ScaleSearch`.
        objective: see :class:`Method`.
        token_weights: default :class:`ModalityBalance`.
    """

    name = "mbq"

    def __init__(
        self,
        grid: int = 20,
        power: float = 1.0,
        inputs: Chain = "full_precision",
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        weights = ModalityBalance() if token_weights is None else token_weights
        super().__init__(inputs, power, False, objective, weights)
        if grid < 1:
            raise InputError(f"grid {grid} is not allowed; at least 1")
        self.grid = grid

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that leaves all weights alone."""
        needs_quantized_weights(self.name, scheme)

    @torch.no_grad()
    def factors(self, block: Block, group: FoldGroup, decision: Decision) -> Tensor:
        """Return powers of the channels' mean magnitude."""
        return magnitude_factors(mean_magnitudes(block, group, decision, self.inputs), self.grid)

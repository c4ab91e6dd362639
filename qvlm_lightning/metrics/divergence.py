"""How far a model's answer distribution is from full precision.

Shapes: B questions, V words of the vocabulary.
"""

import torch
from torch import Tensor


def answer_kl(reference_BV: Tensor, log_probs_BV: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the answer token's distribution from the reference's.

    Args:
        reference_BV: log-probabilities of the reference, nats.
        log_probs_BV: log-probabilities of the model, nats.

    Returns:
        [B] sum_v p_ref (log p_ref - log p), nats, float64.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
        >>> answer_kl(p.log(), q.log())
        tensor([0.1438], dtype=torch.float64)
    """
    reference, model = reference_BV.double(), log_probs_BV.double()
    gap = torch.where(reference == -torch.inf, 0.0, reference - model)
    # stored log-probabilities sum to 1 up to float32: the divergence may come out as -1e-8
    return (reference.exp() * gap).sum(-1).clamp_min(0)

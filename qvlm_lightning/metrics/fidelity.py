"""How far a model's text is from that of its full precision.

Shapes: B texts, T tokens, V words of the vocabulary, N tokens that count.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qvlm_lightning.metrics.divergence import answer_kl

_PART = 256  # tokens at once: in double precision a text times a vocabulary is gigabytes


def token_kl(reference_BTV: Tensor, logits_BTV: Tensor, mask_BT: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the next token's distribution from the reference's.

    Args:
        reference_BTV: logits, or log-probabilities, of the reference.
        logits_BTV: those of the model for the same tokens.
        mask_BT: true where a token counts; others are not looked at.

    Returns:
        [N] sum_v p_ref (log p_ref - log p), nats, float64, text after text.

    Example:
        >>> reference, logits = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> token_kl(reference, logits, torch.tensor([[True]]))
        tensor([0.1201], dtype=torch.float64)
    """
    mask = mask_BT.bool()
    parts = zip(reference_BTV[mask].split(_PART), logits_BTV[mask].split(_PART), strict=True)
    pairs = ((a.double().log_softmax(-1), b.double().log_softmax(-1)) for a, b in parts)
    return torch.cat([answer_kl(*pair) for pair in pairs])


def token_loss(logits_BTV: Tensor, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each token behind those before it.

    Args:
        logits_BTV: logits of the token that follows.
        tokens_BT: the text.
        mask_BT: true where there is a token; the first of a text only stands before others.

    Returns:
        [N] nats, float64, of all tokens whose predecessor counts as they do, text after text.

    Example:
        >>> logits = torch.zeros(1, 3, 4)
        >>> token_loss(logits, torch.tensor([[0, 1, 2]]), torch.ones(1, 3))
        tensor([1.3863, 1.3863], dtype=torch.float64)
    """
    mask = mask_BT.bool()
    counts = mask[:, 1:] & mask[:, :-1]
    following = tokens_BT[:, 1:][counts]
    losses = [
        -part.double().log_softmax(-1).gather(-1, token[:, None])[:, 0]
        for part, token in zip(
            logits_BTV[:, :-1][counts].split(_PART), following.split(_PART), strict=True
        )
    ]
    return torch.cat(losses)


def perplexity(losses: Tensor) -> float:
    """Exponential of the mean loss of some tokens.

    Args:
        losses: [N] nats, see :func:`token_loss`.

    Example:
        >>> round(perplexity(torch.tensor([2.0, 2.0]).log()), 4)
        2.0
    """
    # a model that is broken may be surprised beyond what a number holds
    return math.exp(min(float(losses.double().mean()), 700.0))


@dataclass(frozen=True)
class Agreement:
    """How two greedy answers to one question agree."""

    same: int
    """Places that hold the same token in both."""
    length: int
    """Tokens of the longer one."""
    first_difference: int | None
    """Place of the first token that differs, or that only one has; None where none does."""

    @property
    def whole(self) -> bool:
        """Whether the answers are equal, token by token."""
        return self.first_difference is None

    @property
    def share(self) -> float:
        """Share of equal tokens; 1 of two empty answers."""
        return self.same / self.length if self.length else 1.0


def agreement(answer: Sequence[int], reference: Sequence[int]) -> Agreement:
    """Compare two greedy answers place by place.

    Args:
        answer: token ids of one.
        reference: token ids of the other.

    Example:
        >>> agreement([5, 6, 7], [5, 9, 7, 8])
        Agreement(same=2, length=4, first_difference=1)
    """
    length = max(len(answer), len(reference))
    equal = [a == b for a, b in zip(answer, reference, strict=False)]
    first = equal.index(False) if False in equal else len(equal)
    return Agreement(sum(equal), length, None if first == length else first)

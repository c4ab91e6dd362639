"""Terms of visual-encoder optimisation and of the search objective (eq. 3, 8-10).

Sums and counts come back apart: processes add them up before a ratio or a logarithm is taken,
because neither is a mean over samples.

Shapes: B batch, T tokens, D channels, V vocabulary, M levels, K units.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qvlm_lightning.quant.entropy import conditional_entropy

IGNORED = -100
TINY = 1e-8


def token_nll(logits_BTV: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood of the labels and their number (L_reg).

    Args:
        logits_BTV: logits; position t predicts label t + 1.
        labels_BT: token ids, -100 where nothing is to be predicted (prompt, image, padding).

    Returns:
        Sum in nats (at least float32, 0 without labels) and count (int64).

    Example:
        >>> token_nll(torch.zeros(1, 3, 2), torch.tensor([[-100, 0, 1]]))
        (tensor(1.3863), tensor(2))
    """
    logits = logits_BTV[:, :-1].to(torch.promote_types(logits_BTV.dtype, torch.float32))
    labels = labels_BT[:, 1:]
    total = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total, (labels != IGNORED).sum()


def squared_error_terms(
    x_q: Tensor, x_fp: Tensor, mask_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return numerator and denominator of a relative squared error (eq. 9).

    Args:
        x_q: quantized features, [B, T, D].
        x_fp: full-precision features of the same shape; they get no gradient.
        mask_BT: bool, tokens that count; ``None`` for all.

    Returns:
        ``||x_q - x_fp||^2`` and ``||x_fp||^2`` over the tokens that count, at least float32.

    Example:
        >>> squared_error_terms(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 4.0]]]))
        (tensor(4.), tensor(17.))
    """
    dtype = torch.promote_types(torch.promote_types(x_q.dtype, x_fp.dtype), torch.float32)
    x_q, x_fp = x_q.to(dtype), x_fp.detach().to(dtype)
    if mask_BT is not None:
        x_q, x_fp = x_q[mask_BT.bool()], x_fp[mask_BT.bool()]
    return (x_q - x_fp).square().sum(), x_fp.square().sum()


def relative_error(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return ``numerator / (denominator + 1e-8)`` of summed :func:`squared_error_terms` (eq. 9)."""
    return numerator / (denominator.detach() + TINY)


def entropy_loss(joints: Sequence[Tensor], weights_K: Tensor) -> Tensor:
    """Return the weighted conditional entropy over neighbouring units, to be minimised (eq. 8).

    The sign is plus: eq. 8 prints none of the minus that its text asks for (docs/paper.md).

    Args:
        joints: joint distribution [M, M] of every edge, each summing to 1.
        weights_K: weight of every edge, that of its first unit; detached here.

    Returns:
        ``sum_k w_k D(k, k+1)`` in nats, differentiable; 0 without edges.

    Example:
        >>> entropy_loss([torch.full((2, 2), 0.25)], torch.tensor([2.0]))
        tensor(1.3863)
    """
    if len(joints) != len(weights_K):
        raise ValueError(
            f"{len(weights_K)} weights came with {len(joints)} edges; one each is needed"
        )
    total = weights_K.new_zeros(()).detach()
    for joint, weight in zip(joints, weights_K.detach(), strict=True):
        total = total + weight * conditional_entropy(joint)
    return total


def gradient_norm_sums(gradients: Sequence[Tensor | None]) -> Tensor:
    """Return per unit the sum over samples of the gradient's Frobenius norm.

    Args:
        gradients: of each unit's input, [B, ...]; ``None`` where no gradient arrives.

    Returns:
        [K] float64.

    Example:
        >>> gradient_norm_sums([torch.tensor([[3.0, 4.0], [0.0, 1.0]]), None])
        tensor([6., 0.], dtype=torch.float64)
    """
    norms = [
        0.0 if g is None else g.detach().double().flatten(1).norm(dim=1).sum() for g in gradients
    ]
    return torch.stack([torch.as_tensor(n, dtype=torch.float64).cpu() for n in norms])


def jacobian_weights(sums_K: Tensor, counts_K: Tensor) -> Tensor:
    """Return every unit's weight in the entropy loss: its mean gradient norm, scaled to mean 1.

    Args:
        sums_K: per unit, gradient norms summed over the samples of all processes.
        counts_K: per unit, the number of these samples; 0 is taken as no influence.

    Returns:
        [K], at least 0, mean 1, detached; all 1 if no unit has any influence (sum below 1e-12).

    Example:
        >>> jacobian_weights(torch.tensor([6.0, 0.0]), torch.tensor([2.0, 2.0]))
        tensor([2., 0.])
    """
    means = (sums_K / counts_K.clamp_min(1)).detach()
    total = means.sum()
    if total < 1e-12:
        return torch.ones_like(means)
    return means * (len(means) / total)


def output_error_terms(
    y_hat: Tensor, y: Tensor, weight_BT: Tensor | None = None, normalized: bool = False
) -> tuple[Tensor, Tensor]:
    """Return numerator and denominator of J, the weighted squared error per element (eq. 3).

    Args:
        y_hat: quantized output, [B, T, D].
        y: full-precision output of the same shape.
        weight_BT: how much each token counts: bool, or float of at least 0; ``None`` for 1.
        normalized: compare tokens brought to a mean square of 1, as the norms do that read them
            (docs/paper.md, A13).

    Returns:
        ``sum w ||y_hat - y||^2``, with its gradient, and ``D sum w``, float64; both add up over
        batches and processes.

    Example:
        >>> first_token = torch.tensor([[True, False]])
        >>> output_error_terms(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), first_token)
        (tensor(2., dtype=torch.float64), tensor(2., dtype=torch.float64))
    """
    y_hat = y_hat.to(torch.promote_types(y_hat.dtype, torch.float32))
    if normalized:
        y_hat, y = _unit_mean_square(y_hat), _unit_mean_square(y.to(y_hat.dtype))
    difference, weight = y_hat - y, None
    if weight_BT is not None:
        kept = weight_BT != 0
        difference = difference[kept]
        weight = None if weight_BT.dtype == torch.bool else weight_BT[kept].double()
    squares = difference.double()
    squares = squares.square() if squares.requires_grad else squares.square_()
    if weight is None:
        count = torch.tensor(difference.numel(), dtype=torch.float64, device=y.device)
        return squares.sum(), count
    return (squares * weight[:, None]).sum(), weight.sum() * y.shape[-1]


def _unit_mean_square(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

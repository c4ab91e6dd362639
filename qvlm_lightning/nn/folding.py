"""Scale folds between the norm or Linear layer that makes a tensor and the layers that read it.

With ``y = W diag(f) (x / f)`` a factor moves from the activation into the weight, and the function
stays the same: the fold of SmoothQuant (arXiv:2211.10438, eq. 3) and AWQ (arXiv:2306.00978, eq. 4).

Shapes: S channels of the source, C input channels of a reader (S, or several copies of it).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from qvlm_lightning.models.family import Source


def folded(
    module_of: Callable[[str], nn.Module],
    tensor_of: Callable[[str], Tensor],
    source: Source,
    factor_S: Tensor,
) -> dict[str, Tensor]:
    """Return the tensors that a scale fold changes; nothing is changed in place.

    What the source makes (weight and bias, or gain and bias of a norm) is divided by the factor,
    and the matching input columns of every reader are multiplied by it. Folds can follow one
    another, if ``tensor_of`` gives what the earlier ones left. Computed in float64 and returned in
    the type of each tensor; differentiable in the factor.

    A gain that is stored less 1 (Gemma) keeps few digits in half precision once it is small: there
    ``1 + weight`` is only known to half a step at 1, 2e-3 in bfloat16.

    Args:
        module_of: gives a module by its full name.
        tensor_of: gives a parameter by its full name, on any device.
        source: with full names (:meth:`Source.under`).
        factor_S: [S], positive and finite.

    Returns:
        Full name of a parameter -> its new value.

    Raises:
        ValueError: the factor has another shape or numbers that are not allowed.
    """
    columns = {name: tensor_of(f"{name}.weight").shape[1] for name in source.readers}
    for name, width in columns.items():
        if factor_S.shape != (width // source.repeats,):
            raise ValueError(
                f"a factor of shape {tuple(factor_S.shape)} for the input of {name}; allowed: "
                f"({width // source.repeats},)"
            )
    if not bool((factor_S.isfinite() & (factor_S > 0)).all()):
        raise ValueError(f"a factor for {source.name} is not positive and finite")
    changed = {}
    for own, offset in (("weight", source.offset), ("bias", 0.0)):
        if getattr(module_of(source.name), own, None) is not None:
            name = f"{source.name}.{own}"
            changed[name] = _divided(tensor_of(name), factor_S, source.rows, offset)
    for reader, width in columns.items():
        name = f"{reader}.weight"
        old_OC = tensor_of(name)
        factor_C = factor_S.to(old_OC.device).double()[source.channels(width).to(old_OC.device)]
        changed[name] = (old_OC.double() * factor_C).to(old_OC.dtype)
    return changed


def _divided(old: Tensor, factor_S: Tensor, rows: tuple[int, int] | None, offset: float) -> Tensor:
    """Return a weight [O, I], bias [O] or gain [O], the rows of the source divided by a factor."""
    first, end = rows or (0, old.shape[0])
    by = factor_S.to(old.device).double().reshape(-1, *[1] * (old.dim() - 1))
    part = ((old[first:end].double() + offset) / by - offset).to(old.dtype)
    return torch.cat([old[:first], part, old[end:]])


def per_channel(source: Source, value_C: Tensor, reduce: Literal["amax", "mean"]) -> Tensor:
    """Return one value for every channel of a source, from those of the input channels it becomes.

    A fold needs the same factor for all copies of a channel: of a maximum over tokens take the
    largest, of a mean the mean.

    Args:
        source: says which input channel is a copy of which channel.
        value_C: [C], measured at the input of a reader.
        reduce: ``amax`` or ``mean``.

    Returns:
        [S].
    """
    channel_C = source.channels(len(value_C)).to(value_C.device)
    value_S = value_C.new_zeros(len(value_C) // source.repeats)
    return value_S.scatter_reduce(0, channel_C, value_C, reduce, include_self=False)

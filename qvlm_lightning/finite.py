"""Numbers that are none, wherever they come up."""

import math
from collections.abc import Iterable

from torch import Tensor

from qvlm_lightning.errors import InputError


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Refuse numbers that are none: every result computed from them would be none either.

    Args:
        tensors: by name; those of integers and those on the meta device are passed over.
        where: what holds them, for messages.

    Raises:
        InputError: a value is NaN or infinite; names the tensor.

    Example:
        >>> import torch
        >>> check_finite([("a", torch.ones(2)), ("b", torch.tensor([0.0, torch.nan]))], "'folder'")
        Traceback (most recent call last):
            ...
        qvlm_lightning.errors.InputError: 'folder' has NaN or infinite values in b (1 of 2); ...
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
            continue
        # without a copy of the tensor's size, and NaN wins
        low, high = tensor.detach().aminmax()
        if not (math.isfinite(low) and math.isfinite(high)):
            count = int((~tensor.isfinite()).sum())
            raise InputError(
                f"{where} has NaN or infinite values in {name} ({count:,} of {tensor.numel():,}); "
                "allowed are finite numbers"
            )

"""Overrides of a scheme against the Linear layers of a model."""

import re
from collections.abc import Sequence

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.overrides import Overrides
from qvlm_lightning.quant.scheme import PartScheme


def check_overrides(overrides: Overrides, inputs: Sequence[dict[str, PartScheme]]) -> None:
    """Refuse overrides that a model cannot have.

    Args:
        overrides: of the scheme.
        inputs: per input of a layer, the Linear layers that read it -> the widths they get; without
            those that are kept in full precision for another reason.

    Raises:
        InputError: a pattern matches no layer, or layers that share one input get different
            activation bits (names both).
    """
    names = [name for widths in inputs for name in widths]
    for pattern in overrides:
        if not any(re.search(pattern, name) for name in names):
            such = f", such as {names[0]!r}" if names else ""
            raise InputError(
                f"overrides pattern {pattern!r} matches no Linear layer that can be quantized; "
                f"allowed is a regular expression found in the name of one{such}"
            )
    for widths in inputs:
        by_bits = {each.activation_bits: name for name, each in widths.items()}
        if len(by_bits) > 1:
            raise InputError(_one_input(overrides, by_bits))


def _one_input(overrides: Overrides, by_bits: dict[int, str]) -> str:
    """Say which pattern gives one layer of an input other activation bits than another."""
    (bits, name), (other_bits, other) = list(by_bits.items())[:2]
    giving = {p for p, given in overrides.items() if "activation_bits" in given}
    if not any(re.search(p, name) for p in giving):
        (bits, name), (other_bits, other) = (other_bits, other), (bits, name)
    pattern = next(p for p in reversed(overrides) if p in giving and re.search(p, name))
    return (
        f"overrides pattern {pattern!r} gives {name} {bits} activation bits, but {other} reads the "
        f"same input and has {other_bits}; allowed is one width for all Linear layers of an input"
    )

"""Overrides of a scheme against the Linear layers of a model."""

from collections.abc import Sequence

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.overrides import Overrides
from qvlm_lightning.quant.patterns import matches
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
        if not any(matches(pattern, name) for name in names):
            such = f", such as {names[0]!r}" if names else ""
            raise InputError(
                f"overrides pattern {pattern!r} matches no Linear layer that can be quantized; "
                f"allowed is a regular expression found in the name of one{such}"
            )
    for widths in inputs:
        if len({each.activation_bits for each in widths.values()}) > 1:
            raise InputError(_one_input(overrides, widths))


def _one_input(overrides: Overrides, widths: dict[str, PartScheme]) -> str:
    """Say which pattern gives one layer of an input other activation bits than another has: the
    last one that matches some of them only.
    """
    bits = {name: each.activation_bits for name, each in widths.items()}
    pattern, name, other = next(
        (pattern, name, other)
        for pattern, given in reversed(overrides.items())
        if "activation_bits" in given
        for name in bits
        if matches(pattern, name)
        for other in bits
        if not matches(pattern, other) and bits[other] != bits[name]
    )
    return (
        f"overrides pattern {pattern!r} gives {name} {bits[name]} activation bits, but {other} "
        f"reads the same input and has {bits[other]}; allowed is one width for all Linear layers "
        "of an input"
    )

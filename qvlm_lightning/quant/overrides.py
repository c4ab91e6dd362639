"""Widths of single Linear layers: regular expressions over module names -> other widths."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from qvlm_lightning.quant.patterns import check_pattern, matches

KEYS = ("weight_bits", "activation_bits")

Overrides = dict[str, dict[str, int]]


def checked_overrides(given: Any, widths: Collection[int]) -> Overrides:
    """Return a copy of overrides that a scheme may hold, in their order.

    Args:
        given: regular expression -> ``weight_bits`` or ``activation_bits`` or both.
        widths: those that are allowed.

    Raises:
        ValueError: an unknown key, a width that is not allowed, or no regular expression; its text
            is one sentence.
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            f"overrides is {given!r}; allowed is an object of regular expressions and widths, such "
            "as {down_proj: {activation_bits: 8}}"
        )
    found: Overrides = {}
    for pattern, bits in given.items():
        try:
            check_pattern(pattern)
        except ValueError as error:
            raise ValueError(
                f"overrides pattern {pattern!r} is no regular expression: {error}"
            ) from error
        allowed = " and ".join(KEYS)
        if not isinstance(bits, Mapping) or not bits:
            raise ValueError(f"overrides pattern {pattern!r} has {bits!r}; allowed are {allowed}")
        for key, width in bits.items():
            if key not in KEYS:
                raise ValueError(
                    f"overrides pattern {pattern!r} has the key {key!r}; allowed are {allowed}"
                )
            if isinstance(width, bool) or width not in widths:
                raise ValueError(
                    f"overrides pattern {pattern!r} has {key} {width!r}, which is not allowed; "
                    "2 to 8, or 16 to switch it off"
                )
        found[pattern] = {key: bits[key] for key in KEYS if key in bits}
    return found


def given_to(overrides: Overrides, name: str) -> dict[str, int]:
    """Return the widths that overrides give to a module; of several patterns the last decides.

    Args:
        overrides: pattern, searched in the name -> widths.
        name: full name of the module.

    Example:
        >>> given_to({"mlp": {"activation_bits": 8}, "down": {"activation_bits": 16}}, "0.mlp.down")
        {'activation_bits': 16}
    """
    found: dict[str, int] = {}
    for pattern, bits in overrides.items():
        if matches(pattern, name):
            found |= bits
    return found


def overrides_suffix(overrides: Overrides) -> str:
    """Return what a scheme's name says of its overrides: the widths they give, and a short hash of
    all of them; without overrides nothing.

    Example:
        >>> overrides_suffix({"down_proj": {"activation_bits": 16}})
        '+a16_6d33'
    """
    if not overrides:
        return ""
    widths = sorted({(key[0], width) for bits in overrides.values() for key, width in bits.items()})
    told = json.dumps(list(overrides.items())).encode()  # their order decides, it counts
    kinds = "".join(f"{kind}{width}" for kind, width in widths)
    return f"+{kinds}_{hashlib.sha256(told).hexdigest()[:4]}"

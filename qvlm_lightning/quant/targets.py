"""What the formats of other programs can hold of a scheme, and the nearest scheme that they can."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from qvlm_lightning.errors import InputError

if TYPE_CHECKING:
    from qvlm_lightning.quant.scheme import PartScheme, Scheme

Target = Literal["compressed-tensors", "gguf"]

_OFF = 16

BLOCK = 32
"""Weights that share a scale in every block type of GGUF that is used here."""


def sink_refusal(target: Target, sink: str) -> str | None:
    """Return why a target cannot hold what is done about sink tokens; ``None`` if it can.

    Args:
        target: format of the export.
        sink: field of a scheme.
    """
    if sink == "none":
        return None
    return (
        f"{target} has no place for sink: {sink}, which treats some tokens apart from the others; "
        "the nearest that it holds is sink: none, with activations at 16 bits where sinks matter"
    )


def layer_refusal(
    target: Target,
    weight_bits: int,
    activation_bits: int,
    mode: str,
    symmetric: bool,
    group_size: int | None,
    inputs: int | None = None,
) -> str | None:
    """Return why a target cannot hold a quantized Linear layer; ``None`` if it can.

    Args:
        target: format of the export.
        weight_bits: 2 to 8, or 16 for weights left alone.
        activation_bits: the same of its input.
        mode: of its activations.
        symmetric: whether its weight codes are.
        group_size: inputs that share a weight scale; ``None`` for one scale per output channel.
        inputs: of the layer, where they are known.

    Example:
        >>> layer_refusal("gguf", 4, 16, "dynamic_token", False, 32) is None
        True
        >>> layer_refusal("gguf", 4, 8, "dynamic_token", False, 32)
        'gguf has no quantized activations; the nearest that it holds is activation_bits: 16'
    """
    if target == "gguf":
        return _gguf_refusal(weight_bits, activation_bits, symmetric, group_size, inputs)
    if activation_bits == _OFF:
        return None
    if mode == "static_channel":
        return _nearest(
            "compressed-tensors has no range per channel or position of an activation",
            "activation_mode: static_tensor, or dynamic_token",
        )
    if weight_bits == _OFF:
        return _nearest(
            "compressed-tensors quantizes no activation in front of a weight at 16 bits",
            "weight_bits: 8",
        )
    return None


def _gguf_refusal(
    weight_bits: int,
    activation_bits: int,
    symmetric: bool,
    group_size: int | None,
    inputs: int | None,
) -> str | None:
    if activation_bits != _OFF:
        return _nearest("gguf has no quantized activations", "activation_bits: 16")
    if group_size is not None and group_size % BLOCK:
        return _nearest(
            f"gguf has one scale per block of {BLOCK} inputs, which a group of {group_size} is not "
            "made of",
            f"group_size: {BLOCK}",
        )
    if inputs is not None and inputs % BLOCK:
        return _nearest(
            f"rows of {inputs} inputs are no whole blocks of {BLOCK}, of which gguf is made",
            "to name this layer in ignore",
        )
    if weight_bits == 8 and not symmetric:
        return _nearest(
            "gguf has no asymmetric codes of 8 bits", "weight_symmetric: true, or weight_bits: 7"
        )
    return None


def _nearest(reason: str, scheme: str) -> str:
    return f"{reason}; the nearest that it holds is {scheme}"


def check_parts(scheme: "Scheme", parts: Sequence[str]) -> None:
    """Refuse a scheme whose target cannot hold it, as far as that shows without a model.

    Args:
        scheme: with a target.
        parts: all parts of a model.

    Raises:
        InputError: a part or what is done about sinks cannot be held.
    """
    assert scheme.target is not None
    refusal = sink_refusal(scheme.target, scheme.sink)
    if refusal:
        raise InputError(f"target {scheme.target!r}: {refusal}")
    for part in parts:
        widths = scheme.part(part)
        if (widths.weight_bits, widths.activation_bits) != (_OFF, _OFF):
            check_layer(scheme, part, part, widths, scheme.group_size)


def check_layer(
    scheme: "Scheme",
    part: str,
    name: str,
    widths: "PartScheme",
    group_size: int | None,
    inputs: int | None = None,
) -> None:
    """Refuse a layer that the target of a scheme cannot hold; without a target nothing is refused.

    Args:
        scheme: names the target.
        part: ``vision``, ``projector`` or ``language``; gguf holds the last alone.
        name: of the layer, for the sentence.
        widths: of the layer.
        group_size: inputs that share a weight scale there.
        inputs: of the layer, where they are known.

    Raises:
        InputError: it cannot.
    """
    if scheme.target is None or (scheme.target == "gguf" and part != "language"):
        return
    refusal = layer_refusal(
        scheme.target,
        widths.weight_bits,
        widths.activation_bits,
        scheme.activation_mode,
        scheme.weight_symmetric,
        group_size,
        inputs,
    )
    if refusal:
        raise InputError(f"{name} with target {scheme.target!r}: {refusal}")

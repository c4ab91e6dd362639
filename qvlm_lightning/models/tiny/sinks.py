"""A massive activation at the first token, as pretrained language models have them.

In pretrained decoders a few tokens, the first above all, make single channels of a feed-forward
hundreds of times as large as anything else (arXiv:2402.17762). One static range for the input of
the down projection then has no codes left for the other tokens. Here a channel of the embedded
model that is largest at the first token is scaled until it is that large, and channels of the other
layers are scaled less, all without changing the function.

What this does not bring: pretrained decoders need their first token, to which most heads attend
where there is nothing to find. The embedded model does not, so clipping it costs nothing here.

What is scaled lies between two Linear layers (value to output projection, up to down projection),
where there is no norm to fold a scale into and no rotation of the residual stream reaches. A method
that folds scales from the down into the up projection itself can take it back.

Shapes: B samples, T tokens, C channels of a down projection's input, S channels of a source.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.models.wiring import Source

SITES = ("o_in", "down_in")
"""Inputs whose channels another Linear layer makes."""


@dataclass(frozen=True)
class SinkChannel:
    """The channel of one site that is scaled.

    Attributes:
        layer: full name of the decoder layer; the site is the input of its down projection.
        channel: of that input.
        peak: largest magnitude of the channel, which it has at the first token.
        median: per-token largest magnitude of the other channels, the median over tokens.
    """

    layer: str
    channel: int
    peak: float
    median: float

    @property
    def ratio(self) -> float:
        """Peak over median, what ``sink_scale`` sets."""
        return self.peak / self.median


@torch.no_grad()
def inject_sink(
    model: nn.Module,
    family: VLMFamily,
    inputs: Mapping[str, Tensor],
    scale: float,
    channels: int = 4,
    seed: int = 0,
) -> SinkChannel | None:
    """Make the first token massive in one decoder layer, and give the others outlier channels.

    The channel is the one of :func:`find_sink`: its row of the up projection is multiplied, its
    column of the down projection divided, until its peak is ``scale`` times the site's median. In
    every other decoder layer ``channels`` random channels between value and output projection, and
    as many between up and down projection, are scaled in the same way by the cube root of
    ``scale``. Full-precision outputs stay the same up to rounding.

    Args:
        model: changed in place.
        family: knows its decoder.
        inputs: a batch the channel is looked for on, with ``attention_mask`` [B, T].
        scale: peak over median; 1 changes nothing.
        channels: scaled per site of the other layers.
        seed: decides which.

    Returns:
        The channel as it was before, or ``None`` if nothing was changed.

    Raises:
        InputError: no channel is largest at the first token, or the largest is above ``scale``
            times the median already.
        ValueError: ``scale`` is below 1 or not finite.
    """
    if not (math.isfinite(scale) and scale >= 1):
        raise ValueError(f"sink scale is {scale}; allowed are finite numbers of at least 1")
    if scale == 1:
        return None
    sink = find_sink(model, family, inputs)
    if sink.ratio > scale:
        raise InputError(
            f"sink_scale {scale:g} is below what the model has without it, {sink.ratio:.3g}; "
            "allowed: 1 (off) or more than that"
        )
    rng = torch.Generator().manual_seed(seed)
    for name, layer in family.decoder_layers(model):
        sources = family.sources(layer)
        if name == sink.layer:
            chosen = torch.tensor([sink.channel])
            _enlarge(layer, sources["down_in"], chosen, scale / sink.ratio)
            continue
        for site in SITES:
            if site in sources:
                chosen = torch.randperm(_width(layer, sources[site]), generator=rng)[:channels]
                _enlarge(layer, sources[site], chosen, scale ** (1 / 3))
    return sink


def find_sink(model: nn.Module, family: VLMFamily, inputs: Mapping[str, Tensor]) -> SinkChannel:
    """Return the channel with the largest ratio of the first token to the others.

    The ratio is that of the channel's smallest magnitude at the first tokens to its largest at any
    other token. It has to be above 1: the first token is then the one that a scale makes massive.

    Args:
        model: with gated feed-forwards in its decoder.
        family: knows where they are.
        inputs: a batch with ``attention_mask`` [B, T], padded on either side.

    Raises:
        InputError: no channel of any decoder layer is largest at the first token.
    """
    real_BT = inputs["attention_mask"].bool()
    first_BT = real_BT & (real_BT.cumsum(dim=1) == 1)
    best, sink = 1.0, None
    for name, x_BTC in down_inputs(model, family, inputs).items():
        size_BTC = x_BTC.abs()
        first_C = size_BTC[first_BT].amin(dim=0)
        others_NC = size_BTC[real_BT & ~first_BT]
        value, channel = (first_C / others_NC.amax(dim=0)).nan_to_num(nan=0).max(dim=0)
        if value > best:
            best, peak = float(value), float(size_BTC[..., channel][first_BT].max())
            sink = SinkChannel(
                name, int(channel), peak, median_of_others(size_BTC[real_BT], int(channel))
            )
    if sink is None:
        raise InputError(
            "sink_scale needs a channel before a down projection that is largest at the first "
            "token, and the model has none; allowed: 1 (off)"
        )
    return sink


def median_of_others(x_NC: Tensor, channel: int) -> float:
    """Return the median over tokens of the largest magnitude among all channels but one.

    Args:
        x_NC: input of a down projection.
        channel: that is left out.
    """
    rest_NC = x_NC.abs().index_fill(1, torch.tensor([channel], device=x_NC.device), 0)
    return float(rest_NC.amax(dim=1).median())


@torch.no_grad()
def down_inputs(
    model: nn.Module, family: VLMFamily, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return decoder layer -> input of its down projection [B, T, C], where it is a gated one.

    Args:
        model: run once.
        family: knows where the layers are.
        inputs: what the model takes.
    """
    seen: dict[str, Tensor] = {}
    hooks = []
    for name, layer in family.decoder_layers(model):
        source = family.sources(layer).get("down_in")
        if source is not None:
            down = layer.get_submodule(source.readers[0])
            hooks.append(
                down.register_forward_pre_hook(
                    lambda _, args, name=name: seen.__setitem__(name, args[0])
                )
            )
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _width(layer: nn.Module, source: Source) -> int:
    """Return S."""
    return layer.get_submodule(source.readers[0]).get_parameter("weight").shape[1] // source.repeats


def _enlarge(layer: nn.Module, source: Source, chosen: Tensor, scale: float) -> None:
    """Multiply channels of a Linear layer by a factor and divide what reads them, in place."""
    factor_S = torch.ones(_width(layer, source), dtype=torch.float64)
    factor_S[chosen] = scale
    first, end = source.rows or (0, len(factor_S))
    own = dict(layer.get_submodule(source.name).named_parameters())
    own["weight"][first:end].mul_(factor_S[:, None].to(own["weight"]))
    if "bias" in own:
        own["bias"][first:end].mul_(factor_S.to(own["bias"]))
    for reader in source.readers:
        weight_OC = layer.get_submodule(reader).get_parameter("weight")
        weight_OC.div_(factor_S[source.channels(weight_OC.shape[1])].to(weight_OC))

"""Outlier channels that leave the function of a model unchanged.

They are no stress for a method that folds the norms' gains into the layers behind them, as every
rotation of the residual stream does: that undoes them exactly. ``sinks.py`` has outliers that stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "layer_norm1": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "layer_norm2": ("mlp.fc1",),
}
"""The Linear layers that read each norm of a Llama or CLIP layer."""


def norms_and_readers(model: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Linear]]]:
    """Walk over the norms whose output only Linear layers read.

    Args:
        model: a LLaVA model, or any model with CLIP or Llama layers.

    Yields:
        A norm, and the Linear layers that read it.
    """
    for module in model.modules():
        for norm, readers in READERS.items():
            if hasattr(module, norm) and hasattr(module, readers[0].split(".")[0]):
                linears = [module.get_submodule(name) for name in readers]
                yield getattr(module, norm), [m for m in linears if isinstance(m, nn.Linear)]


@torch.no_grad()
def inject_outliers(model: nn.Module, scale: float, channels: int = 4, seed: int = 0) -> None:
    """Enlarge a few channels behind every norm, and shrink what reads them by as much.

    The gain (and bias) of ``channels`` channels of each norm in the tower and the decoder is
    multiplied by ``scale``; the matching input columns of the Linear layers behind it are divided
    by it. Full-precision outputs stay the same up to rounding, activations get outliers. Folding
    the norms undoes it.

    Args:
        model: the model, changed in place.
        scale: factor of at least 1; 1 changes nothing.
        channels: channels per norm.
        seed: decides which channels.

    Raises:
        ValueError: if the scale is below 1 or not finite, or a norm has too few channels.
    """
    if not (math.isfinite(scale) and scale >= 1):
        raise ValueError(f"outlier scale is {scale}; allowed are finite numbers of at least 1")
    if channels < 1:
        raise ValueError(f"outlier channels is {channels}; allowed are integers of at least 1")
    if scale == 1:
        return
    rng = torch.Generator().manual_seed(seed)
    for norm, readers in norms_and_readers(model):
        gain, bias = norm.get_parameter("weight"), getattr(norm, "bias", None)
        if channels > gain.numel():
            raise ValueError(
                f"outlier channels is {channels}; allowed are 1 to {gain.numel()} for this model"
            )
        chosen = torch.randperm(gain.numel(), generator=rng)[:channels].to(gain.device)
        gain[chosen] *= scale
        if isinstance(bias, Tensor):
            bias[chosen] *= scale
        for linear in readers:
            linear.weight[:, chosen] /= scale

"""Measurements of a calibration for people to look at."""

import torch
from torch import Tensor

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.nn.linear import output_sqnr


@torch.no_grad()
def layer_sqnr(calibrator: Calibrator) -> dict[str, float]:
    """Return per quantized Linear the signal-to-quantization-noise ratio of its output, in dB.

    On the first search batch, of which every Linear sees the input that really reaches it; the
    signal is what its full-precision weight makes of that input.

    Args:
        calibrator: with ranges; towers are as they are switched at present.
    """
    structure = calibrator.structure
    linears = {name: x for site in structure.sites for name, x in site.linears.items()}
    on = {tower for tower, enabled in structure.enabled().items() if enabled}
    batch = calibrator.search_batches[0]
    with output_sqnr(linears, structure.changes) as decibels:
        calibrator.passes.watch({0: batch}, {}, on, lambda *_: None)
    return decibels


@torch.no_grad()
def clip_histograms(calibrator: Calibrator) -> dict[str, tuple[Tensor, float, float]]:
    """Return per site a sample of its full-precision activations and its present outermost
    bounds.

    Args:
        calibrator: with statistics.
    """
    result = {}
    for site in calibrator.structure.sites:
        if site.quantizer.mode != "dynamic_token":
            low, high = site.quantizer.bounds()
            values = calibrator.statistics.observed(site).sample()
            result[site.name] = (values, float(low.min()), float(high.max()))
    return result

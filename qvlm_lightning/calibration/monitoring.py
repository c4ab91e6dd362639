"""Measurements of a calibration for people to look at, and the tags under which loggers have them.

``headline/`` has at most five curves, ``baseline/`` what each of them starts from, ``detail/`` the
rest.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.calibration.state import CalibrationState
from qvlm_lightning.nn.linear import output_sqnr
from qvlm_lightning.results.objectives import mean_objectives, scores_of

HEADLINES = {
    "loss": "loss over the whole calibration set (baseline: before training)",
    "objective": "objective J, mean over blocks (baseline: min-max ranges)",
    "sqnr_mean": "signal to noise of layer outputs, mean, dB (baseline: min-max ranges)",
    "sqnr_worst": "signal to noise of layer outputs, worst, dB (baseline: min-max ranges)",
}
"""Tag behind ``headline/`` and ``baseline/`` -> what it shows."""


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


def histogram(values: Tensor, bins: int = 48) -> dict[str, Any]:
    """Return the counts of values between their smallest and their largest, in plain numbers.

    Args:
        values: of any shape, finite.
        bins: number of intervals of equal width.

    Example:
        >>> histogram(torch.tensor([0.0, 1.0, 1.0, 4.0]), bins=2)
        {'from': 0.0, 'to': 4.0, 'counts': [3, 1]}
    """
    flat = values.detach().flatten().double().cpu()
    start, end = float(flat.min()), float(flat.max())
    counts = torch.histc(flat, bins, start, end).long().tolist()
    return {"from": start, "to": end, "counts": counts}


def fixed_loss_scalars(measured: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what loggers get of the last measurement of the whole set's loss.

    Args:
        measured: ``loss_fixed`` so far, not empty.
    """
    terms = {n: x for n, x in measured[-1].items() if n not in ("epoch", "after")}
    detail = {f"detail/loss_fixed/{name}": x for name, x in terms.items()}
    return detail | _headline("loss", terms["total"], measured[0]["total"])


def search_scalars(state: CalibrationState, search: Mapping[str, Any]) -> dict[str, float]:
    """Return what loggers get of a search pass.

    Args:
        state: after it.
        search: its entry of ``passes``.
    """
    costs = ("layer_forwards", "seconds")
    found = {f"detail/search/{cost}": float(search[cost]) for cost in costs}
    found |= {f"detail/percentile/{site}": x for site, x in state.percentiles.items()}
    for block in state.objective:
        for name, value in scores_of(block).items():
            place = f"{block['tower']}.{block['first']}-{block['last']}"
            found[f"detail/objective/{place}/{name}"] = value
    means = mean_objectives(state.objective)
    return found | (_headline("objective", means[1], means[0]) if means else {})


def sqnr_scalars(measured: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Return what loggers get of the signal to noise of all layers.

    Args:
        measured: layer -> dB.
        before: the same on min-max ranges; empty if that was not measured.
    """
    found = {f"detail/sqnr/{layer}": decibel for layer, decibel in measured.items()}
    for name, over in (("sqnr_mean", fmean), ("sqnr_worst", min)):
        if measured:
            base = over(before.values()) if before else None
            found |= _headline(name, over(measured.values()), base)
    return found


def _headline(name: str, value: float, base: float | None) -> dict[str, float]:
    assert name in HEADLINES
    return {f"headline/{name}": value} | ({} if base is None else {f"baseline/{name}": base})

"""The loss of visual-encoder optimisation by plain loops and autograd (eq. 8-10)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.wiring.counting import activations, draw
from tests.wiring.plain import (
    LEVELS,
    UNITS,
    Batch,
    Plain,
    Range,
    Trace,
    counted,
    rows_of,
    sites_of,
)

ENTROPY_TOWERS = ("vision", "language")


def surrogate(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Fake-quantize so that autograd finds the straight-through gradient by itself.

    Inside the range the value is ``x + r * scale``, where r, the rounding in units of the scale, is
    a constant; outside it moves with the bound. That is the learned step size of LSQ, written for
    two bounds.
    """
    low, high = torch.clamp(low, max=0), torch.clamp(high, min=0)
    scale = (high - low) / (LEVELS - 1)
    with torch.no_grad():
        wide = x.to(scale.dtype)
        zero_point = torch.round(-low / scale)
        value = (torch.round(wide / scale) + zero_point).clamp(0, LEVELS - 1) - zero_point
        inside = (wide >= low) & (wide <= high)
        rounding = value - wide / scale
        # what the value of the last code differs from the bound by is a constant too
        below, above = value * scale - low, value * scale - high
    outside = torch.where(x < low, low + below, high + above)
    return torch.where(inside, x.to(scale.dtype) + rounding * scale, outside).to(x.dtype)


class Learning(Plain):
    """The plain model with ranges and weights that gradients reach.

    Args:
        model: of ``build_toy``.
        ratios: site -> (low ratio, high ratio), and Linear layer -> clip ratio [O, 1]; leaves.
    """

    def __init__(self, model: Any, ratios: Mapping[str, Any]) -> None:
        super().__init__(model)
        self.ratios = ratios

    def activation(self, site: str, x: Tensor, bounds: Range) -> Tensor:
        if site not in self.ratios:
            return surrogate(x, *bounds)
        low_ratio, high_ratio = self.ratios[site]
        return surrogate(x, bounds[0] * low_ratio, bounds[1] * high_ratio)

    def weight(self, name: str) -> Tensor:
        if name not in self.ratios:
            return self.weights[name]
        rows = zip(self.linear[name].weight, self.ratios[name], strict=True)
        return torch.stack([surrogate(w, w.min() * clip, w.max() * clip) for w, clip in rows])


def attention_inputs(trace: Trace) -> dict[str, list[Tensor]]:
    """Return tower -> X^(k) of every unit."""
    return {
        tower: [
            trace.inputs[sites_of(tower, unit)[0]]
            for unit in range(len(UNITS[tower]))
            if sites_of(tower, unit)[0] in trace.inputs
        ]
        for tower in ENTROPY_TOWERS
    }


def jacobian(plain: Plain, batch: Batch, ranges: Mapping[str, Range]) -> dict[str, list[float]]:
    """Return w_k: mean over samples of the norm of dE/dX^(k), mean 1 over all units."""
    with torch.no_grad():
        target = plain.run(batch, {}).last_hidden
    with torch.enable_grad(), leaves(plain):
        trace = plain.run(batch, ranges)
        mask = batch["attention_mask"] == 1
        error = (trace.last_hidden - target).square()[mask].mean()
        units = attention_inputs(trace)
        flat = [x for tower in ENTROPY_TOWERS for x in units[tower]]
        slopes = iter(torch.autograd.grad(error, flat))
    norms = {
        tower: [
            sum(float(sample.square().sum()) ** 0.5 for sample in next(slopes))
            / len(rows_of(tower, batch))
            for _ in units[tower]
        ]
        for tower in ENTROPY_TOWERS
    }
    every = [w for tower in norms.values() for w in tower]
    mean = sum(every) / len(every)
    return {tower: [w / mean for w in found] for tower, found in norms.items()}


class leaves:  # noqa: N801
    """Let gradients reach the first layers, in front of which everything is frozen."""

    def __init__(self, plain: Plain) -> None:
        first = [next(iter(UNITS[tower])) for tower in ENTROPY_TOWERS]
        self.modules: list[nn.Module] = [plain.units[name] for name in first]

    def __enter__(self) -> None:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            if not hidden.requires_grad:
                hidden.requires_grad_(True)

        self.handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in self.modules]

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


def channel_ranges(plain: Plain, batches: Sequence[Batch]) -> dict[str, list[tuple[Any, Any]]]:
    """Return tower -> per unit the exact range of every channel in full precision."""
    found = {}
    for tower in ENTROPY_TOWERS:
        units = activations(plain, tower, batches, {})
        pools = [np.concatenate(samples) for samples in units]
        found[tower] = [
            (torch.from_numpy(p.min(axis=0)), torch.from_numpy(p.max(axis=0))) for p in pools
        ]
    return found


def entropy_of_edges(
    trace: Trace,
    batch: Batch,
    ranges: Mapping[str, list[tuple[Any, Any]]],
    samples: int,
    seed: int,
    temperature: float | str,
) -> dict[str, list[Tensor]]:
    """Return tower -> soft H(next | this) of every edge, differentiable (eq. 4 and 5).

    ``paper`` is eq. 5 as printed, exp(-(x - q)^2 / Delta), in the units of the activation.
    """
    found = {}
    for tower, units in attention_inputs(trace).items():
        mask, rows = counted(tower, batch), len(rows_of(tower, batch))
        levels = []
        for x, (low, high) in zip(units, ranges[tower], strict=True):
            low, high = low.clamp(max=0), high.clamp(min=0)
            step = (high - low) / (LEVELS - 1)
            values, steps, zeros = [], [], []
            for sample, share, channel in draw(rows, x.shape[-1], samples, seed):
                kept = x[sample] if mask is None else x[sample][mask[sample]]
                values.append(kept[int(share * len(kept)), channel])
                steps.append(step[channel])
                zeros.append(torch.round(-low[channel] / step[channel]))
            u = torch.stack(values) / torch.stack(steps) + torch.stack(zeros)
            distance = u.clamp(0, LEVELS - 1)[:, None] - torch.arange(LEVELS)
            if temperature == "paper":
                delta = torch.stack(steps)[:, None]
                weight = torch.exp(-(distance * delta).square() / delta)
            else:
                weight = torch.exp(-distance.square() / temperature)
            levels.append(weight / weight.sum(dim=1, keepdim=True))
        found[tower] = []
        for this, after in itertools.pairwise(levels):
            joint = torch.einsum("sa,sb->ab", this, after) / samples
            given = joint / joint.sum(dim=1, keepdim=True)
            found[tower].append(-(joint * torch.log(given.clamp_min(1e-30))).sum())
    return found


def answer_loss(trace: Trace, labels: Tensor) -> Tensor:
    """Return the mean of -log p(answer token) over all answer tokens of the batch."""
    losses = []
    for row in range(len(labels)):
        for token in range(1, labels.shape[1]):
            if labels[row, token] != -100:
                scores = trace.logits[row, token - 1]
                losses.append(torch.logsumexp(scores, 0) - scores[labels[row, token]])
    return torch.stack(losses).mean()


def relative(x: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        x, target = x[mask], target[mask]
    return (x - target).square().sum() / (target.square().sum() + 1e-8)

"""The toy LLaVA of tests/calibration quantized by hooks on the plain model: nothing here calls the
package, so that whatever the package wires together can be compared with it.

A forward pass is always one of the whole model. Sites and units have the names of the package.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 16
ENCODER = "model.vision_tower.encoder.layers"
PROJECTOR = "model.multi_modal_projector"
DECODER = "model.language_model.layers"
TOWERS = ("vision", "projector", "language")

# Linear layers that read one input, in the order in which they run
VISION_SITES = {
    "attn_in": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "o_in": ["self_attn.out_proj"],
    "mlp_in": ["mlp.fc1"],
    "down_in": ["mlp.fc2"],
}
PROJECTOR_SITES = {"first_in": ["linear_1"], "second_in": ["linear_2"]}
DECODER_SITES = {
    "attn_in": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "o_in": ["self_attn.o_proj"],
    "mlp_in": ["mlp.gate_proj", "mlp.up_proj"],
    "down_in": ["mlp.down_proj"],
}
# LLaVA reads the last tower layer but one: of three, two reach the output
UNITS: dict[str, dict[str, dict[str, list[str]]]] = {
    "vision": {f"{ENCODER}.{i}": VISION_SITES for i in range(2)},
    "projector": {PROJECTOR: PROJECTOR_SITES},
    "language": {f"{DECODER}.{i}": DECODER_SITES for i in range(4)},
}
LINEARS: dict[str, list[str]] = {
    f"{unit}.{site}": [f"{unit}.{linear}" for linear in linears]
    for units in UNITS.values()
    for unit, sites in units.items()
    for site, linears in sites.items()
}
"""Site -> its Linear layers."""
SITE = {linear: site for site, linears in LINEARS.items() for linear in linears}
Range = tuple[Tensor, Tensor]
Batch = dict[str, Tensor]


def sites_of(tower: str, unit: int) -> list[str]:
    name = list(UNITS[tower])[unit]
    return [f"{name}.{site}" for site in UNITS[tower][name]]


def double(batch: Batch) -> Batch:
    """Return a batch for a model in float64, in which the order of a sum flips no code."""
    return {n: x.double() if n == "pixel_values" else x for n, x in batch.items()}


def left_padded(batch: Batch) -> Batch:
    """Return the batch with its padding in front."""
    order = batch["attention_mask"].argsort(dim=1, stable=True)
    rows = ("input_ids", "attention_mask", "labels")
    return {n: x.gather(1, order) if n in rows else x for n, x in batch.items()}


def fake_quantized(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Quantize to 4 bits and back; the formula of docs/paper.md (A11)."""
    low, high = torch.clamp(low, max=0), torch.clamp(high, min=0)
    scale = torch.maximum((high - low) / (LEVELS - 1), 1e-6 * torch.maximum(-low, high))
    zero_point = torch.round(-low / scale)
    codes = torch.round(x.to(scale.dtype) / scale) + zero_point
    return ((codes.clamp(0, LEVELS - 1) - zero_point) * scale).to(x.dtype)


def fake_quantized_tokens(x: Tensor, ratio: Tensor) -> Tensor:
    """Quantize every token symmetrically on its own absmax times a clip ratio."""
    absmax = x.float().abs().amax(dim=-1, keepdim=True) * ratio
    scale = (absmax / ((LEVELS - 1) / 2)).clamp_min(torch.finfo(torch.float32).tiny)
    codes = torch.round(x.float() / scale).clamp(-LEVELS // 2, LEVELS // 2 - 1)
    return (codes * scale).to(x.dtype)


def fake_quantized_rows(weight: Tensor) -> Tensor:
    """Quantize every output channel of a weight on its own range."""
    return torch.stack([fake_quantized(row, row.min(), row.max()) for row in weight])


def counted(tower: str, batch: Batch) -> Tensor | None:
    """Return the tokens that count, [B, T]; ``None`` for all."""
    return batch["attention_mask"] == 1 if tower == "language" else None


def rows_of(tower: str, batch: Batch) -> list[int]:
    """Return the samples a tower sees of a batch."""
    index, has_image = batch["sample_index"].tolist(), batch["has_image"].tolist()
    seen = zip(index, has_image, strict=True)
    return index if tower == "language" else [i for i, image in seen if image]


class ReachedError(Exception):
    """What lies behind is of no interest."""


@dataclass
class Trace:
    """What one forward pass held.

    Attributes:
        inputs: site -> what its Linear layers were given.
        outputs: unit -> what it gave.
        features: X_v, what the projector was given.
        last_hidden: X_n, what the output head was given.
        logits: [B, T, V].
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    last_hidden: Tensor | None = None
    logits: Tensor | None = None


class Plain:
    """The plain model with hooks.

    Args:
        model: of ``build_toy``, not shared with anybody.
        mode: of the activations.
    """

    def __init__(self, model: Any, mode: str = "static_tensor") -> None:
        self.model, self.mode = model, mode
        modules = dict(model.named_modules())
        self.linear: dict[str, nn.Linear] = {name: modules[name] for name in SITE}
        self.units = {name: modules[name] for units in UNITS.values() for name in units}
        with torch.no_grad():
            self.weights = {n: fake_quantized_rows(x.weight) for n, x in self.linear.items()}

    def activation(self, site: str, x: Tensor, bounds: Range) -> Tensor:
        if self.mode == "dynamic_token":
            return fake_quantized_tokens(x, bounds[1])
        return fake_quantized(x, *bounds)

    def weight(self, name: str) -> Tensor:
        return self.weights[name]

    def read(self, name: str, x: Tensor, bounds: Range) -> Tensor:
        """Return what a quantized Linear layer makes of its input."""
        x_q = self.activation(SITE[name], x, bounds)
        return nn.functional.linear(x_q, self.weight(name), self.linear[name].bias)

    def exact(self, name: str, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.linear[name].weight, self.linear[name].bias)

    def run(self, batch: Batch, ranges: Mapping[str, Range], last: str = "") -> Trace:
        """Run the model, quantized at the sites of ``ranges`` and nowhere else, up to unit
        ``last``.
        """
        trace = Trace()
        inputs = {
            n: batch[n] for n in ("input_ids", "attention_mask", "pixel_values") if n in batch
        }
        with self._hooks(trace, ranges, last), suppress(ReachedError):
            trace.logits = self.model(**inputs, use_cache=False).logits
        return trace

    @contextmanager
    def _hooks(self, trace: Trace, ranges: Mapping[str, Range], last: str) -> Iterator[None]:
        def of_linear(name: str) -> Any:
            site = SITE[name]

            def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                trace.inputs.setdefault(site, args[0])
                return self.read(name, args[0], ranges[site]) if site in ranges else output

            return hook

        def of_unit(name: str) -> Any:
            def hook(_: nn.Module, args: Any, output: Any) -> None:
                trace.outputs[name] = output[0] if isinstance(output, tuple) else output
                if name == last:
                    raise ReachedError

            return hook

        def of_projector(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            trace.features = args[0]

        def of_head(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            trace.last_hidden = args[0]

        handles = [x.register_forward_hook(of_linear(name)) for name, x in self.linear.items()]
        handles += [x.register_forward_hook(of_unit(name)) for name, x in self.units.items()]
        handles.append(self.units[PROJECTOR].register_forward_pre_hook(of_projector))
        handles.append(self.model.lm_head.register_forward_pre_hook(of_head))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def tables(
    plain: Plain, batches: Sequence[Batch], percentiles: Sequence[float]
) -> dict[str, list[Range]]:
    """Return per site the range at every percentile, over all tokens that count: of the tensor, of
    every channel, or in the tower of every position; clip ratios where every token has its own.

    The toy's samples are so short that the reservoir keeps every token.
    """
    if plain.mode == "dynamic_token":
        ratios = [torch.tensor(p) for p in percentiles]
        return {site: [(-r, r) for r in ratios] for site in LINEARS}
    pools: dict[str, list[Tensor]] = {site: [] for site in LINEARS}
    for batch in batches:
        trace = plain.run(batch, {})
        for site in trace.inputs:
            x, mask = trace.inputs[site].float(), counted(tower_of(site), batch)
            for row in range(len(x)):
                pools[site].append(x[row] if mask is None else x[row][mask[row]])
    return {
        site: [of_pool(plain.mode, site, pools[site], p) for p in percentiles] for site in pools
    }


def tower_of(site: str) -> str:
    unit = site.rpartition(".")[0]
    return next(tower for tower, units in UNITS.items() if unit in units)


def of_pool(mode: str, site: str, samples: list[Tensor], percentile: float) -> Range:
    """Return the two quantiles of samples [T, D]."""
    if mode == "static_tensor":
        pool = torch.cat([x.reshape(-1, 1) for x in samples])
    elif tower_of(site) == "vision":
        pool = torch.cat([x.T for x in samples])
    else:
        pool = torch.cat(samples)
    ends = np.quantile(pool.numpy().astype(np.float64), [1 - percentile, percentile], axis=0)
    low, high = torch.from_numpy(ends).float()
    if mode == "static_tensor":
        return low[0], high[0]
    return (low[:, None], high[:, None]) if tower_of(site) == "vision" else (low, high)

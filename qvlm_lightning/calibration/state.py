"""What a calibration has decided so far: plain data, stored in checkpoints and reports."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class CalibrationState:
    """Decisions and measurements; every value is a plain number, string, list or dict.

    Attributes:
        dependency: tower -> D(k, k+1) per edge, nats for the entropy proxies.
        dependency_by_kind: the same on image tokens and text tokens only.
        threshold: tower -> h_0.
        partition: tower -> blocks as [first, last].
        percentiles: site -> percentile.
        gradients: module -> kind of token -> mean size of the loss's gradient at its output, where
            token weights ask for it.
        objective: per block: tower, first, last, J of each way to choose.
        passes: per search pass: epoch, towers, layer_forwards, site_forwards, seconds.
        partitions: per re-partition: epoch and the partition, so that changes can be seen.
        changed: name of a weight, bias or gain that a method changed -> file of the decision.
        sqnr_minmax: quantized Linear -> signal to quantization noise of its output on min-max
            ranges, dB; empty if it was not measured.
        searched: towers whose ranges a search has chosen, in that order.
        initialised: whether the quantizers hold ranges at all.
        loss: per epoch of visual-encoder optimisation, each term.
        loss_fixed: each term over the whole calibration set, always with the triples and Jacobian
            weights of the first epoch: epoch (0 before the first), after (``search`` or
            ``training``), reg, ent, err, total.
        jacobian: tower -> w_k per unit, of the present epoch.
        jacobian_fixed: the same, of the first epoch.
        steps: optimiser steps done.
        passes_done: epochs whose search pass is complete.
    """

    dependency: dict[str, list[float]] = field(default_factory=dict)
    dependency_by_kind: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    threshold: dict[str, float] = field(default_factory=dict)
    partition: dict[str, list[list[int]]] = field(default_factory=dict)
    percentiles: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, dict[str, float]] = field(default_factory=dict)
    objective: list[dict[str, Any]] = field(default_factory=list)
    passes: list[dict[str, Any]] = field(default_factory=list)
    partitions: list[dict[str, Any]] = field(default_factory=list)
    loss: list[dict[str, float]] = field(default_factory=list)
    loss_fixed: list[dict[str, Any]] = field(default_factory=list)
    jacobian: dict[str, list[float]] = field(default_factory=dict)
    jacobian_fixed: dict[str, list[float]] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    sqnr_minmax: dict[str, float] = field(default_factory=dict)
    searched: list[str] = field(default_factory=list)
    initialised: bool = False
    steps: int = 0
    passes_done: list[int] = field(default_factory=list)
    partitions_done: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def update(self, values: dict[str, Any]) -> None:
        """Take over what :meth:`to_dict` returned."""
        for name, value in values.items():
            setattr(self, name, value)

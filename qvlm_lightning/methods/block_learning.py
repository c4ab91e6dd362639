"""Gradient descent on the objective of a block, for whatever tensors a method learns."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.nn.structure import Site
from qvlm_lightning.quant.scheme import OFF


@dataclass
class ActivationClips:
    """Factors on the range of every site of a block whose activations are quantized.

    In ``dynamic_token`` mode the upper one is the clip ratio on each token's largest magnitude.

    Attributes:
        sites: those sites.
        start: lower and upper bound of each, as given.
        factors: lower and upper factor of each, initially 1; learned.
    """

    sites: list[Site]
    start: list[tuple[Tensor, Tensor]]
    factors: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, block: Block) -> "ActivationClips":
        """Return the factors of a block, all 1."""
        sites = [site for site in block.sites if site.quantizer.num_bits < OFF]
        start = []
        for site in sites:
            name = f"{next(iter(site.linears))}.input_quantizer"
            bounds = (
                block.tensor(f"{name}.{own}") * block.tensor(f"{name}.{own}_ratio")
                for own in ("low", "high")
            )
            low, high = (bound.detach().clone() for bound in bounds)
            start.append((low, high))
        made = cls(sites, start)
        made.factors = [(_learned(low), _learned(high)) for low, high in start]
        return made

    @property
    def parameters(self) -> list[Tensor]:
        """What is learned."""
        return [factor for pair in self.factors for factor in pair]

    def decision(self) -> Decision:
        """Return the ranges; differentiable."""
        tensors = {}
        for site, start, factors in zip(self.sites, self.start, self.factors, strict=True):
            name = f"{next(iter(site.linears))}.input_quantizer"
            dynamic = site.quantizer.mode == "dynamic_token"
            for own, bound, factor in zip(("low", "high"), start, factors, strict=True):
                moved = bound * factor.clamp_min(_LEAST)
                # a clip ratio above 1 would leave codes without any value
                tensors[f"{name}.{own}"] = moved.clamp(-1, 1) if dynamic else moved
                tensors[f"{name}.{own}_ratio"] = torch.ones_like(bound)
        return Decision(tensors)


@dataclass
class WeightClips:
    """Factors on minimum and maximum of every output channel, or group of inputs, of a layer.

    Attributes:
        low, high: [O, G, 1], initially 1; learned.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, shape: tuple[int, int, int], device: torch.device) -> "WeightClips":
        """Return the factors of a layer, all 1."""
        ones = torch.ones(shape, device=device)
        return cls(_learned(ones), _learned(ones))

    def ranges(self, weight_OI: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Return low and high, [O, G, 1]; differentiable in factors and weight."""
        grouped = weight_OI.float().reshape(*self.low.shape[:2], -1)
        low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        if symmetric:
            high = torch.maximum(-low, high) * self.high.clamp(_LEAST, 1)
            return -high, high
        return low * self.low.clamp(_LEAST, 1), high * self.high.clamp(_LEAST, 1)


_LEAST = 0.1
"""Of a factor: a range must not turn over or vanish."""


def _learned(like: Tensor) -> Tensor:
    return torch.ones_like(like, dtype=torch.float32).requires_grad_(True)


def descend(
    block: Block,
    groups: list[dict[str, object]],
    decision_of: Callable[[], Decision],
    steps: int,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    penalty: Callable[[int], Tensor] | None = None,
    falling: bool = True,
) -> None:
    """Lower J of a block, one batch per step, in the order of the batches.

    Learning rates fall linearly to 0, if asked. The scale of every token follows what is learned.

    Args:
        block: with its cached inputs.
        groups: of parameters, as optimisers take them.
        decision_of: the decision that the parameters stand for; differentiable.
        steps: number of steps.
        optimizer: its class.
        penalty: what a step adds to J; differentiable.
        falling: let learning rates fall; otherwise they stay, for a penalty that grows.

    Raises:
        FloatingPointError: J is NaN or infinite.
    """
    stepper = optimizer(groups)  # type: ignore[call-arg]
    rates = [float(group["lr"]) for group in stepper.param_groups]
    quantizers = [site.quantizer for site in block.sites]
    for quantizer in quantizers:
        quantizer.learns_scale = True
    try:
        with torch.enable_grad():
            for step in range(steps):
                for group, rate in zip(stepper.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 - step / steps if falling else 1)
                loss = block.loss(step % len(block.x_q), decision_of())
                if not bool(loss.isfinite()):
                    raise FloatingPointError(f"the objective is {float(loss)} in step {step}")
                if penalty is not None:
                    loss = loss + penalty(step).to(loss)
                stepper.zero_grad()
                loss.backward()
                stepper.step()
    finally:
        for quantizer in quantizers:
            quantizer.learns_scale = False


class SignDescent(torch.optim.Optimizer):
    """Steps of one size in the direction of every gradient's sign (SignRound, arXiv:2309.05516).

    Args:
        params: parameters, or groups of them.
        lr: size of a step.
    """

    def __init__(self, params: list[dict[str, object]], lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Take a step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] * parameter.grad.sign()

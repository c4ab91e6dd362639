"""Learned rounding of weights by signs of gradients (SignRound, EMNLP 2024, arXiv:2309.05516)."""

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.block_learning import (
    ActivationClips,
    SignDescent,
    WeightClips,
    descend,
)
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.requirements import needs_quantized_weights
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.quant.weights import fake_quantize_weight_on, weight_qparams


class LearnedRounding(Method):
    """Learns which way every weight is rounded, with the ranges, on the block's output.

    ``W_q = s (clamp(round(W / s + V) + z, 0, 2^b - 1) - z)`` with V in [-0.5, 0.5] (eq. 3); V and
    the factors on ranges take steps of one size against the sign of their gradient, which fall
    linearly (Algorithm 1). Layers of a block are learned together: the partition says how many.

    Args:
        steps: number of steps, on one batch each; the first is as large as 1 / steps.
        clips: learn ranges of weights and activations too.
        objective: see :class:`Method`.
        token_weights: see there.
    """

    name = "signround"
    pairs = "all"
    changes_weights = True

    def __init__(
        self,
        steps: int = 60,
        clips: bool = True,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        if steps < 1:
            raise InputError(f"steps {steps} is not allowed; at least 1")
        self.steps, self.clips = steps, clips

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that leaves all weights alone."""
        needs_quantized_weights(self.name, scheme)

    def solve(self, block: Block) -> Decision:
        """Return weights on their grids and ranges; rounding to nearest, if learning did not
        help.
        """
        learned = _Learned(block)
        start = learned.rounded()
        groups = [{"params": list(learned.offsets.values()), "lr": 1 / self.steps}]
        if self.clips:
            clips = learned.activations.parameters
            clips += [x for own in learned.weights.values() for x in (own.low, own.high)]
            groups.append({"params": clips, "lr": _CLIP_SHARE / self.steps})
        descend(block, groups, learned.decision, self.steps, SignDescent)
        found = learned.rounded()
        before, after = block.errors([start, found]).tolist()
        scores = {"start": before, self.name: min(before, after)}
        return Decision((found if after < before else start).tensors, scores)


_CLIP_SHARE = 0.25
"""Of the step of an offset: steps of 1 / steps add up to half the way of a factor to 0."""


class _Learned:
    """What is learned of a block.

    Attributes:
        offsets: layer -> V, [O, I].
        weights: layer -> factors on the given range of its weight.
        activations: factors on the ranges of activations.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.offsets: dict[str, Tensor] = {}
        self.weights: dict[str, WeightClips] = {}
        self.given: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for site in block.sites:
            for name, linear in site.linears.items():
                own = linear.weight_quantizer
                if own.active:
                    weight = block.tensor(f"{name}.weight").detach()
                    low, high = (
                        block.tensor(f"{name}.weight_quantizer.{bound}").detach()
                        for bound in ("low", "high")
                    )
                    ratio = block.tensor(f"{name}.weight_quantizer.clip_ratio").detach()[..., None]
                    self.given[name] = weight, low * ratio, high * ratio
                    self.offsets[name] = torch.zeros_like(weight, dtype=torch.float32)
                    self.offsets[name].requires_grad_()
                    self.weights[name] = WeightClips.of(own.shape, weight.device)
        self.activations = ActivationClips.of(block)

    def decision(self) -> Decision:
        """Return what the parameters stand for; differentiable."""
        found = self.activations.decision()
        for name in self.offsets:
            found |= self.block.decide_weight(name, *self._moved(name))
        return found

    def rounded(self) -> Decision:
        """Return the same with weights on their grids; no graph."""
        found = self.decision().detached()
        for name in self.offsets:
            own = self.block.linear(name).weight_quantizer
            low, high = (found.tensors[f"{name}.weight_quantizer.{x}"] for x in ("low", "high"))
            key = f"{name}.weight"
            found.tensors[key] = fake_quantize_weight_on(
                found.tensors[key], low, high, own.num_bits, own.symmetric
            )
        return found

    def _moved(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``W + V s`` and its range: rounded to nearest, it is W rounded as V says."""
        weight, low, high = self.given[name]
        clips, own = self.weights[name], self.block.linear(name).weight_quantizer
        low, high = low * clips.low.clamp(0.1, 1), high * clips.high.clamp(0.1, 1)
        if own.symmetric:
            low = -high
        scale, _ = weight_qparams(low, high, own.num_bits, own.symmetric, weight.dtype)
        offset = self.offsets[name].clamp(-0.5, 0.5).reshape(*scale.shape, -1) * scale[..., None]
        return weight + offset.reshape(weight.shape).to(weight.dtype), low, high

"""Learned linear transforms of activations (FlatQuant, ICML 2025, arXiv:2410.09426)."""

from dataclasses import replace

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block, Objective
from qvlm_lightning.methods.block_learning import ActivationClips, WeightClips, descend
from qvlm_lightning.methods.decision import Decision
from qvlm_lightning.methods.requirements import (
    check_ranges,
    holds_transforms,
    needs_quantized_activations,
    needs_ranges_only,
)
from qvlm_lightning.methods.token_weights import TokenWeights
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.online_transform import inverse_in_weight, taken_out_of_weight
from qvlm_lightning.nn.parameters import Parameters
from qvlm_lightning.nn.structure import Site, Structure
from qvlm_lightning.quant.hadamard import factors
from qvlm_lightning.quant.scheme import OFF, Scheme


class LearnedTransforms(Method):
    """Learns ``y = x P`` in front of every activation quantizer, with ``W P^-T`` in the layers.

    P is the Kronecker product of two matrices, or one full matrix at narrow sites (eq. 3 and 4). It
    starts from the rotation that a :class:`Rotation` before it has put there, otherwise from the
    identity, and is learned together with clips of weights and activations on the block's output
    (eq. 5).

    Args:
        steps: of Adam, on one batch each.
        lr: of P.
        clip_lr: of the factors on ranges.
        full_width: inputs up to which P is one full matrix.
        ranges: decides the activations' ranges first, from which learning starts; default: minimum
            and maximum.
        objective: see :class:`Method`.
        token_weights: see there.
    """

    name = "flatquant"
    pairs = "all"
    changes_weights = True
    folds = True
    prepares = True

    def __init__(
        self,
        steps: int = 60,
        lr: float = 5e-3,
        clip_lr: float = 5e-3,
        full_width: int = 200,
        ranges: Method | None = None,
        objective: Objective = "normalized",
        token_weights: TokenWeights | None = None,
    ) -> None:
        super().__init__(objective, token_weights)
        if steps < 1:
            raise InputError(f"steps {steps} is not allowed; at least 1")
        if not (lr > 0 and clip_lr >= 0):
            raise InputError(
                f"learning rates lr {lr} and clip_lr {clip_lr} are not allowed; lr above 0, "
                "clip_lr 0 or more"
            )
        needs_ranges_only(ranges)
        self.steps, self.lr, self.clip_lr, self.full_width = steps, lr, clip_lr, full_width
        self.ranges = ranges
        self.uses_tables = ranges is not None and ranges.uses_tables

    def candidates(self, activation_mode: str) -> list[float]:
        """Return those of what decides the ranges."""
        return self.ranges.candidates(activation_mode) if self.ranges else [1.0]

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme without quantized activations, or a target without transforms."""
        needs_quantized_activations(self.name, scheme)
        holds_transforms(self.name, scheme, "method quarot with online: none")
        check_ranges(self.ranges, scheme)

    @torch.no_grad()
    def prepare(self, parameters: Parameters, family: VLMFamily, structure: Structure) -> None:
        """Put identities where no transform is yet."""
        for site in structure.sites:
            width = site.leader.in_features
            if site.quantizer.num_bits < OFF and site.transform is None:
                orders = (1, width) if width <= self.full_width else factors(width)
                site.put_transform(*map(torch.eye, orders))
            elif site.transform is not None and width <= self.full_width:
                site.transform.make_full()

    def solve(self, block: Block) -> Decision:
        """Return transforms, weights and ranges; what it started from, if learning did not help."""
        scores, ranges = {}, Decision()
        if self.ranges is not None:
            ranges = self.ranges.solve(block)
            scores = ranges.scores
            block = replace(block, given=block.given | Decision(ranges.tensors))
        learned = _Learned(block)
        start = learned.decision().detached()
        matrices = [x for pair in learned.matrices.values() for x in pair if x.requires_grad]
        clips = learned.activations.parameters
        clips += [x for own in learned.weights.values() for x in (own.low, own.high)]
        groups = [{"params": matrices, "lr": self.lr}, {"params": clips, "lr": self.clip_lr}]
        descend(block, groups, learned.decision, self.steps)
        found = learned.decision().detached()
        before, after = block.errors([start, found]).tolist()
        scores = scores | {"start": before, self.name: min(before, after)}
        better = found if after < before else start
        return Decision(ranges.tensors | better.tensors, scores)


class _Learned:
    """What is learned of a block.

    Attributes:
        matrices: site -> factors of its transform.
        weights: layer -> factors on its weight's range.
        activations: factors on the ranges of activations.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.sites: list[Site] = [s for s in block.sites if s.transform is not None]
        self.matrices: dict[str, tuple[Tensor, Tensor]] = {}
        self.plain: dict[str, Tensor] = {}
        self.weights: dict[str, WeightClips] = {}
        for site in self.sites:
            name = f"{next(iter(site.linears))}.input_transform"
            left, right = (block.tensor(f"{name}.{own}").detach() for own in ("left", "right"))
            for linear in site.linears:
                weight = block.tensor(f"{linear}.weight").detach()
                self.plain[linear] = taken_out_of_weight(weight, left, right)
            # a factor of one row is 1 and stays so: the transform passes over it
            left, right = (x.clone().requires_grad_(len(x) > 1) for x in (left, right))
            self.matrices[site.name] = left, right
        for site in block.sites:
            for layer, module in site.linears.items():
                own = module.weight_quantizer
                if own.active:
                    self.weights[layer] = WeightClips.of(own.shape, own.clip_ratio.device)
        self.activations = ActivationClips.of(block)

    def decision(self) -> Decision:
        """Return what the parameters stand for; differentiable."""
        found = self.activations.decision()
        for site in self.block.sites:
            pair = self.matrices.get(site.name)
            for name, linear in site.linears.items():
                weight = self.block.tensor(f"{name}.weight")
                if pair is not None:
                    weight = inverse_in_weight(self.plain[name], *pair).to(weight.dtype)
                    found.tensors[f"{name}.weight"] = weight
                if name in self.weights:
                    symmetric = linear.weight_quantizer.symmetric
                    ranges = self.weights[name].ranges(weight, symmetric)
                    found |= self.block.decide_weight(name, weight, *ranges)
            if pair is not None:
                name = f"{next(iter(site.linears))}.input_transform"
                found.tensors |= {f"{name}.left": pair[0], f"{name}.right": pair[1]}
        return found

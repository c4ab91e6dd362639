"""Proxies of the dependency between neighbouring units; the partition maximises what they
measure.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qvlm_lightning.losses import output_error_terms
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.percentile import JointSearch, MinMax
from qvlm_lightning.quant.entropy import conditional_entropy, entropy, mutual_information


@dataclass
class Evidence:
    """What a proxy may look at for one tower.

    Attributes:
        joints: [edges, M, M] float64, joint distribution of the codes of neighbouring units.
        pairs: makes the block of units (k, k+1) for a method, called as ``pairs(k, method)``; costs
            forward passes.
    """

    joints: Tensor
    pairs: Callable[[int, Method], Block]


class Proxy(ABC):
    """Edge values D(k, k+1) of a tower.

    Attributes:
        method: what it runs on pairs of units, if anything.
    """

    method: Method | None = None

    @abstractmethod
    def edges(self, evidence: Evidence) -> list[float]:
        """Return one value per edge, larger = search the two units together."""


class ConditionalEntropy(Proxy):
    """H(next | this) of the codes, in nats: the paper's proxy (eq. 4)."""

    def edges(self, evidence: Evidence) -> list[float]:
        """Return H(V|U) per edge."""
        return [float(conditional_entropy(joint)) for joint in evidence.joints]


class Entropy(Proxy):
    """H(next) of the codes, in nats: what the paper's Figure 2 plots."""

    def edges(self, evidence: Evidence) -> list[float]:
        """Return H(V) per edge."""
        return [float(entropy(joint.sum(dim=0))) for joint in evidence.joints]


class MutualInformation(Proxy):
    """I(this; next) of the codes, in nats."""

    def edges(self, evidence: Evidence) -> list[float]:
        """Return I(U; V) per edge."""
        return [float(mutual_information(joint)) for joint in evidence.joints]


class QuantizationError(Proxy):
    """Error at the output of the pair under min-max ranges, per element (the rival in the paper's
    Table 5).
    """

    def __init__(self) -> None:
        self.method = MinMax("plain")

    def edges(self, evidence: Evidence) -> list[float]:
        """Return J of min-max per edge, relative to the mean square of the target."""
        assert self.method is not None
        values = []
        for edge in range(len(evidence.joints)):
            block = evidence.pairs(edge, self.method)
            minmax = torch.zeros(1, len(block.sites), dtype=torch.int64)
            terms = [
                output_error_terms(torch.zeros_like(target), target, call.mask)
                for call, target in zip(block.x_fp, block.targets, strict=True)
            ]
            power = sum(term[0] for term in terms) / sum(term[1] for term in terms)
            values.append(float(block.candidate_errors(minmax)[0] / power))
        return values


class DiscretizationErrorDifference(Proxy):
    """J of the sequential choice minus J of the joint one on the pair (DED; docs/paper.md, A10):
    costly, the oracle.
    """

    def __init__(self, search: JointSearch | None = None) -> None:
        self.search = self.method = search or JointSearch()

    def edges(self, evidence: Evidence) -> list[float]:
        """Return the difference per edge, at least 0."""
        values = []
        for edge in range(len(evidence.joints)):
            objective = self.search.solve(evidence.pairs(edge, self.search)).scores
            values.append(objective["sequential"] - objective["joint"])
        return values

"""The loss of visual-encoder optimisation: sums over samples, and what is made of them (eq. 8-10).

The sums of a batch add up over its parts, run by several processes or one after another. A loss is
made of the whole batch's: none of its terms is a mean over samples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.errors import InputError, check_numbers
from qvlm_lightning.forward.passes import Passes
from qvlm_lightning.forward.samples import Batch, counted, model_inputs
from qvlm_lightning.losses import (
    entropy_loss,
    gradient_norm_sums,
    jacobian_weights,
    relative_error,
    squared_error_terms,
    token_nll,
)
from qvlm_lightning.nn.distributed import all_sum
from qvlm_lightning.nn.taps import differentiable_inputs
from qvlm_lightning.vision.soft_edges import (
    ForwardOutputs,
    SoftEdges,
    forward_outputs,
    gradients_by_sample,
)

Sums = dict[str, Tensor]
"""``nll`` [2]: nats and labels; ``error`` [2, 2]: squares of difference and target of X_v and X_n;
``joint <tower>`` [edges, M, M]: soft counts."""
Jacobian = dict[str, list[float]]
_JOINT = "joint "


@dataclass(frozen=True)
class LossWeights:
    """Weights of eq. 9 and 10; the paper names none of them (docs/paper.md)."""

    lambda_ent: float = 0.01
    """lambda_1, weight of the Jacobian-weighted entropy."""
    lambda_err: float = 1.0
    """lambda_2, weight of the discretisation error."""
    eta: float = 1.0
    """Weight of the last hidden state's error against the visual features' (eq. 9)."""

    def __post_init__(self) -> None:
        check_numbers(0, lambda_ent=self.lambda_ent, lambda_err=self.lambda_err, eta=self.eta)


class TowerLoss:
    """``L_reg + lambda_ent * L_ent + lambda_err * L_err`` of calibration batches (eq. 10).

    Args:
        passes: run the model, with quantizers on.
        edges: soft joint distributions.
        batches: whole calibration batches.
        parts: of every batch, the parts that this process runs.
    """

    def __init__(
        self,
        passes: Passes,
        edges: SoftEdges,
        batches: Sequence[Batch],
        parts: Sequence[Sequence[Batch]],
    ) -> None:
        self.passes, self.structure, self.edges = passes, passes.structure, edges
        self.batches, self.parts = batches, parts
        # the full-precision X_v and X_n never change (docs/paper.md, A18)
        with torch.no_grad(), self.structure.only(set()):
            outputs = [[self._run(part, units=False) for part in of_batch] for of_batch in parts]
        self.targets = [[(s.features, s.last_hidden) for s in of_batch] for of_batch in outputs]

    def _run(self, part: Batch, units: bool) -> ForwardOutputs:
        inputs = model_inputs(part, self.passes.device)
        with self.passes.differentiable():
            outputs = forward_outputs(self.passes.model, self.structure, inputs, units=units)
        if not units:  # of a target nobody needs the logits, which are larger
            outputs.logits = outputs.logits.new_empty(0)
        return outputs

    def sums(self, index: int, part: int, seed: int, zero: Tensor) -> Sums:
        """Run one part of a batch and return its sums, with their gradient.

        Args:
            index: which batch.
            part: which part of it.
            seed: of the draw of the entropy's triples, over the whole batch.
            zero: 0 with a gradient path, so that a part without images takes part in every backward
                pass.
        """
        local = self.parts[index][part]
        outputs = self._run(local, units=True)
        nll, count = token_nll(outputs.logits, local["labels"].to(self.passes.device))
        features, last_hidden = self.targets[index][part]
        mask = counted(local).to(self.passes.device)
        n_terms = torch.stack(squared_error_terms(outputs.last_hidden, last_hidden, mask))
        v_terms = torch.zeros_like(n_terms)
        if features is not None:
            assert outputs.features is not None
            v_terms = torch.stack(squared_error_terms(outputs.features, features, None))
        sums = {
            "nll": torch.stack([nll, count.to(nll.dtype)]) + zero,
            "error": torch.stack([v_terms, n_terms]) + zero,
        }
        counts = self.edges.counts(outputs, local, self.batches[index], seed)
        return sums | {f"{_JOINT}{tower}": x + zero for tower, x in counts.items()}

    def terms(self, sums: Sums, weights: LossWeights, jacobian: Jacobian) -> dict[str, Tensor]:
        """Return ``reg`` (0 without answers), ``ent``, ``err`` and ``total`` (eq. 8-10).

        Args:
            sums: of a whole batch.
            weights: of the terms.
            jacobian: w_k per tower.

        Raises:
            InputError: the loss is NaN or infinite; what it would teach is none either.
        """
        nll, count = sums["nll"]
        reg = nll / count.clamp_min(1)
        relative = relative_error(sums["error"][:, 0], sums["error"][:, 1])
        err = relative[0] + weights.eta * relative[1]
        flat: list[Tensor] = []
        factors: list[float] = []
        for name in (n for n in sums if n.startswith(_JOINT)):
            joints = list(sums[name] / self.edges.samples)
            flat += joints
            factors += jacobian[name.removeprefix(_JOINT)][: len(joints)]
        ent = reg.new_zeros(())
        if flat:
            ent = entropy_loss(flat, torch.tensor(factors, device=reg.device))
        total = reg + weights.lambda_ent * ent + weights.lambda_err * err
        terms = {"reg": reg, "ent": ent, "err": err, "total": total}
        if not bool(total.isfinite()):
            said = ", ".join(f"{name} {float(value.detach()):g}" for name, value in terms.items())
            raise InputError(f"the loss is not finite ({said}); try a smaller model.lr")
        return terms

    def jacobian(self) -> Jacobian:
        """Return w_k per unit from one gradient pass of E^(n) on the first batch, of mean
        1 (docs/paper.md, A17).
        """
        towers = [self.structure.towers[name] for name in ("vision", "language")]
        width = [sum(bool(unit.sites) for unit in tower.units) for tower in towers]
        norms, counts = torch.zeros(2, sum(width), dtype=torch.float64)
        tokens = 0.0
        for part, (_, target) in zip(self.parts[0], self.targets[0], strict=True):
            mask = counted(part).to(self.passes.device)
            tokens += float(mask.sum())
            own, samples = self._gradient_norms(part, target, mask)
            # a part that has no image reaches the decoder only
            norms[-len(own) :] += own
            counts[-len(own) :] += samples
        whole = float(all_sum(torch.tensor(tokens, dtype=torch.float64)))
        split = jacobian_weights(all_sum(norms / whole), all_sum(counts)).tolist()
        return {"vision": split[: width[0]], "language": split[width[0] :]}

    def _gradient_norms(self, part: Batch, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return per unit that the part reaches the summed gradient norms and their number."""
        target = target.to(torch.promote_types(target.dtype, torch.float32))  # sums are never bf16
        towers: list[Any] = [self.structure.towers[name] for name in ("vision", "language")]
        first = [tower.units[0].module for tower in towers if tower.units]
        with torch.enable_grad(), differentiable_inputs(first):
            outputs = self._run(part, units=True)
            error = (outputs.last_hidden - target).square().mean(dim=-1)[mask].sum()
            units = [x for tower in outputs.units.values() for x in tower]
            found = torch.autograd.grad(error, units, allow_unused=True)
        gradients, counts = gradients_by_sample(outputs, found, part)
        return gradient_norm_sums(gradients), counts


def added(parts: Iterable[Sums]) -> Sums:
    """Return the sums over parts that all name the same ones."""
    return reduce(lambda one, other: {n: x + other[n] for n, x in one.items()}, parts)


def mean_terms(terms: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Return the mean of every term over batches: what an epoch's steps descend.

    Example:
        >>> mean_terms([{"err": torch.tensor(1.0)}, {"err": torch.tensor(2.0)}])
        {'err': 1.5}
    """
    return {name: sum(float(t[name]) for t in terms) / len(terms) for name in terms[0]}

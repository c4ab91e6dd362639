"""Visual-encoder optimisation (eq. 8-10) as a LightningModule with learnable quantizer
parameters.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from qvlm_lightning.calibration.answers import note_missing_answers
from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.samples import Batch, with_image_rows
from qvlm_lightning.calibration.statistics import model_inputs
from qvlm_lightning.calibration.stream_run import refuse_streaming
from qvlm_lightning.calibration.taps import Seen, SoftEdges, gradients_by_sample, run_and_see
from qvlm_lightning.errors import InputError
from qvlm_lightning.losses import (
    entropy_loss,
    gradient_norm_sums,
    jacobian_weights,
    relative_error,
    squared_error_terms,
    token_nll,
)
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.adapters import add_lora, add_norm_shifts
from qvlm_lightning.nn.distributed import all_sum, all_sum_with_gradient, world
from qvlm_lightning.nn.taps import differentiable_inputs
from qvlm_lightning.quant.scheme import Scheme

Trainables = Literal["bounds", "norms", "lora"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of eq. 9 and 10; the paper names none of them (docs/paper.md)."""

    lambda_ent: float = 0.01
    """lambda_1, weight of the Jacobian-weighted entropy."""
    lambda_err: float = 1.0
    """lambda_2, weight of the discretisation error."""
    eta: float = 1.0
    """Weight of the last hidden state's error against the visual features' (eq. 9)."""


class VisualEncoderOptimization(QuantModule):
    """Learns the tower's clip bounds for the whole model's output; the decoder's quantizers stay
    frozen.

    Loss: ``L_reg + lambda_ent * L_ent + lambda_err * L_err`` (eq. 10).

    Args:
        family, scheme, seed, every_n_epochs: see :class:`QuantModule`.
        streaming: only ``false``; gradients go through the whole model.
        epochs: epochs of optimisation; the Trainer runs one more for the final pass.
        lr: AdamW learning rate at the start of a cosine to 0; bounds are learned as ratios around
            1.
        weights: weights of the loss terms.
        temperature: of the soft assignment (eq. 5), or ``paper`` for its printed form.
        entropy_samples: (sample, token, channel) triples per batch and tower.
        train: ``bounds``, or additionally ``norms`` or ``lora`` of the tower.
        lora_rank: rank of the low-rank update, for ``train: lora``.
        grad_clip: largest gradient norm.
    """

    def __init__(
        self,
        family: VLMFamily,
        scheme: Scheme | None = None,
        seed: int = 0,
        every_n_epochs: int = 5,
        epochs: int = 10,
        lr: float = 1e-2,
        weights: LossWeights | None = None,
        temperature: float | Literal["paper"] = 0.25,
        entropy_samples: int = 16384,
        train: Trainables = "bounds",
        lora_rank: int = 4,
        grad_clip: float = 1.0,
        streaming: bool = False,
    ) -> None:
        super().__init__(family, scheme, seed, every_n_epochs)
        refuse_streaming(streaming)
        if epochs < 1:
            raise InputError(
                f"epochs {epochs} is not allowed; at least 1 (or a method without optimisation)"
            )
        if isinstance(temperature, float | int) and temperature <= 0:
            raise InputError(
                f"temperature {temperature} is not allowed; a positive number or 'paper'"
            )
        self.epochs, self.lr, self.grad_clip = epochs, lr, grad_clip
        self.weights = weights or LossWeights()
        self.temperature, self.entropy_samples = temperature, entropy_samples
        self.train_what, self.lora_rank = train, lora_rank

    def build(self, data: Any, trainer: Any) -> None:
        """Build the model; make the tower's quantizers (and norms or low-rank updates) learnable.

        Args:
            data: see :meth:`QuantModule.build`.
            trainer: see :meth:`QuantModule.build`.
        """
        if self.calibrator is not None:
            return
        super().build(data, trainer)
        if self.train_what == "norms":
            add_norm_shifts(self.structure)
        elif self.train_what == "lora":
            add_lora(self.structure, self.lora_rank, self.seed)
        for parameter in self.quantizer_parameters():
            parameter.requires_grad_(True)
        if not self.quantizer_parameters():
            raise InputError(
                "visual-encoder optimisation has nothing to learn: vision and projector are both "
                "at 16 bits"
            )

    def quantizer_parameters(self) -> list[nn.Parameter]:
        """Return what is learned: bounds, weight clips and adapters of tower and projector."""
        parameters: list[nn.Parameter] = []
        for name in (n for n in self.structure.towers if n != "language"):
            for site in self.structure.towers[name].sites:
                if site.quantizer.num_bits < 16:
                    high = [site.quantizer.high_ratio]
                    dynamic = site.quantizer.mode == "dynamic_token"
                    parameters += high if dynamic else [site.quantizer.low_ratio, *high]
                parameters += [x.clip_ratio for x in site.linears.values() if x.weight_bits < 16]
            for unit in self.structure.towers[name].units:
                parameters += [p for n, p in unit.module.named_parameters() if ".adapter." in n]
        return parameters

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW without weight decay over :meth:`quantizer_parameters`."""
        return torch.optim.AdamW(self.quantizer_parameters(), lr=self.lr, weight_decay=0.0)

    # --- data -----------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Collect statistics, cache the full-precision targets X_v and X_n (they never change,
        A18).
        """
        super().on_train_start()
        calibrator = self._built()
        note_missing_answers(self.structure, calibrator.batches)
        trainer: Any = self.trainer  # sets datamodule on itself, undeclared
        self.local_batches: list[Batch] = [
            with_image_rows(self.family, calibrator.model, batch)
            for batch in trainer.datamodule.rank_batches(*world())
        ]
        self.edges = SoftEdges(
            self.structure, calibrator.statistics, self.temperature, self.entropy_samples
        )
        self.targets: list[tuple[Tensor | None, Tensor]] = []
        with torch.no_grad(), self.structure.only(set()):
            for batch in self.local_batches:
                seen = run_and_see(
                    calibrator.model, self.structure, model_inputs(batch, self.device), units=False
                )
                self.targets.append((seen.features, seen.last_hidden))

    # --- one step -------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one optimiser step on the batch that ``state.steps`` says; none in the final
        epoch.
        """
        if self.finished:
            return
        epoch, index = divmod(self.state.steps, self.steps_per_epoch)
        if index == 0:
            self.state.jacobian = self.measure_jacobian()
        with torch.enable_grad():
            terms = self.loss_terms(index, self.state.steps)
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        self.manual_backward(terms["total"] + 0.0 * self.anchor)
        torch.nn.utils.clip_grad_norm_(self.quantizer_parameters(), self.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rate()
        optimizer.step()
        self.state.steps += 1
        self._log(epoch, index, {name: float(value.detach()) for name, value in terms.items()})

    def _zero(self) -> Tensor:
        """Return 0 with a gradient path to every learned parameter.

        Samples without an image leave the tower unused. A process that has only such samples must
        still take part in every reduction of the backward pass, and DDP wants every gradient.
        """
        return (
            sum((p.sum() for p in self.quantizer_parameters()), torch.zeros((), device=self.device))
            * 0.0
        )

    def _learning_rate(self) -> float:
        """Cosine from ``lr`` to 0, a function of the step alone so that nothing has to be
        restored.
        """
        angle = math.pi * self.state.steps / (self.epochs * self.steps_per_epoch)
        return self.lr * 0.5 * (1 + math.cos(angle))

    def loss_terms(self, index: int, step: int) -> dict[str, Tensor]:
        """Return ``reg`` (0 without answers), ``ent``, ``err`` and ``total`` (eq. 8-10) of batch
        ``index``, over all processes.

        Args:
            index: which calibration batch.
            step: seeds the draw of the entropy's triples.
        """
        batch = self.local_batches[index]
        seen = run_and_see(
            self._built().model, self.structure, model_inputs(batch, self.device), units=True
        )
        nll, count = token_nll(seen.logits, batch["labels"].to(self.device))
        pooled = all_sum_with_gradient(torch.stack([nll, count.to(nll.dtype)]) + self._zero())
        reg = pooled[0] / pooled[1].clamp_min(1)
        err = self._discretization_error(seen, index)
        joints = self.edges.joints(
            seen,
            batch,
            self._built().batches[index],
            self.seed * 1_000_003 + step,
            self._zero(),
        )
        flat = [joint for tower in joints.values() for joint in tower]
        factors = [w for name in joints for w in self.state.jacobian[name][: len(joints[name])]]
        ent = (
            entropy_loss(flat, torch.tensor(factors, device=self.device))
            if flat
            else reg.new_zeros(())
        )
        total = reg + self.weights.lambda_ent * ent + self.weights.lambda_err * err
        return {"reg": reg, "ent": ent, "err": err, "total": total}

    def _discretization_error(self, seen: Seen, index: int) -> Tensor:
        """Return L_err (eq. 9): relative squared errors of X_v and X_n, summed over processes
        before the ratio.
        """
        features, last_hidden = self.targets[index]
        mask = self.local_batches[index]["attention_mask"].bool().to(self.device)
        n_terms = torch.stack(squared_error_terms(seen.last_hidden, last_hidden, mask))
        v_terms = torch.zeros_like(n_terms)
        if features is not None:
            assert seen.features is not None
            v_terms = torch.stack(squared_error_terms(seen.features, features, None))
        pooled = all_sum_with_gradient(torch.stack([v_terms, n_terms]) + self._zero())
        relative = relative_error(pooled[:, 0], pooled[:, 1])
        return relative[0] + self.weights.eta * relative[1]

    def measure_jacobian(self) -> dict[str, list[float]]:
        """Return w_k per unit from one gradient pass of E^(n) on the first batch (A17); mean 1."""
        batch, (_, target) = self.local_batches[0], self.targets[0]
        target = target.to(torch.promote_types(target.dtype, torch.float32))  # sums are never bf16
        mask = batch["attention_mask"].bool().to(self.device)
        towers = [self.structure.towers[name] for name in ("vision", "language")]
        first = [tower.units[0].module for tower in towers if tower.units]
        with torch.enable_grad(), differentiable_inputs(first):
            inputs = model_inputs(batch, self.device)
            seen = run_and_see(self._built().model, self.structure, inputs, units=True)
            error = (seen.last_hidden - target).square().mean(dim=-1)[mask].sum()
            units = [x for tower in seen.units.values() for x in tower]
            found = torch.autograd.grad(error, units, allow_unused=True)
        gradients, counts = gradients_by_sample(seen, found, batch)
        sums = gradient_norm_sums(gradients) / float(all_sum(mask.sum().double().cpu()))
        width = [sum(bool(unit.sites) for unit in tower.units) for tower in towers]
        if not seen.units["vision"]:  # a process whose share has no image still takes part
            nothing = torch.zeros(width[0], dtype=torch.float64)
            sums, counts = torch.cat([nothing, sums]), torch.cat([nothing, counts])
        split = jacobian_weights(all_sum(sums), all_sum(counts)).tolist()
        return {"vision": split[: width[0]], "language": split[width[0] :]}

    def _log(self, epoch: int, index: int, values: dict[str, float]) -> None:
        logger = self.trainer.logger
        if logger is not None and self.trainer.is_global_zero:
            logger.log_metrics(
                {f"loss/{name}": v for name, v in values.items()}, step=self.state.steps
            )
        if index == 0:
            self.state.loss.append(dict.fromkeys(values, 0.0))
        for name, value in values.items():
            self.state.loss[epoch][name] += value / self.steps_per_epoch

    def identity(self) -> dict[str, Any]:
        """Add the hyperparameters of the optimisation."""
        own = {
            "lr": self.lr,
            "weights": list(vars(self.weights).values()),
            "train": self.train_what,
            "lora_rank": self.lora_rank,
            "temperature": self.temperature,
            "entropy_samples": self.entropy_samples,
            "grad_clip": self.grad_clip,
        }
        return super().identity() | own

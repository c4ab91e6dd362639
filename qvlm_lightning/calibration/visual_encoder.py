"""Visual-encoder optimisation (eq. 8-10) as a LightningModule with learnable quantizer
parameters.
"""

import math
from typing import Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.monitoring import fixed_loss_scalars
from qvlm_lightning.calibration.stream_run import Streaming
from qvlm_lightning.errors import check_numbers
from qvlm_lightning.forward.passes import WholeModel
from qvlm_lightning.forward.samples import Batch, batch_number
from qvlm_lightning.methods.base import Method
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.distributed import all_sum, all_sum_with_gradient, world
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.vision.answers import note_missing_answers
from qvlm_lightning.vision.learned import Trainables, make_learnable, tower_parameters
from qvlm_lightning.vision.parts import parts_of_process
from qvlm_lightning.vision.soft_edges import SoftEdges
from qvlm_lightning.vision.tower_loss import (
    Jacobian,
    LossWeights,
    Sums,
    TowerLoss,
    added,
    mean_terms,
)


class VisualEncoderOptimization(QuantModule):
    """Learns the tower's clip bounds for the whole model's output; the decoder's quantizers stay
    frozen.

    Loss: ``L_reg + lambda_ent * L_ent + lambda_err * L_err`` (eq. 10). What it is over the whole
    calibration set is measured after searches and epochs, by a forward pass of the set each
    (``loss_fixed`` in the report).

    Args:
        family, scheme, method, seed, every_n_epochs, name, sensitivity: see :class:`QuantModule`.
        streaming: see :class:`QuantModule`; a step then reads every layer forwards and again
            backwards.
        epochs: epochs of optimisation; the Trainer runs one more for the final pass.
        lr: AdamW learning rate at the start of a cosine to 0; bounds are learned as ratios around
            1.
        weights: weights of the loss terms.
        temperature: of the soft assignment (eq. 5), or ``paper`` for its printed form.
        entropy_samples: (sample, token, channel) triples per batch and tower.
        train: ``bounds``, or additionally ``norms`` or ``lora`` of the tower.
        lora_rank: rank of the low-rank update, for ``train: lora``.
        grad_clip: largest gradient norm.
        micro_batches: in how many parts a process runs its share of a batch, one after another. The
            step is the same (the loss is made of the sums of all parts, for which each of them runs
            forwards twice); memory for activations is divided by it.
        activation_checkpointing: keep of every layer its input only and run it again for the
            backward pass; the step is the same. Streaming always does.
        measure_every_n_epochs: distance between measurements of the loss over the whole calibration
            set; the start and the end are always measured.
    """

    optimises = True

    def __init__(
        self,
        family: VLMFamily,
        scheme: Scheme | None = None,
        method: Method | None = None,
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
        micro_batches: int = 1,
        activation_checkpointing: bool = False,
        streaming: Streaming = False,
        measure_every_n_epochs: int = 1,
        name: str | None = None,
        sensitivity: bool = False,
    ) -> None:
        super().__init__(family, scheme, method, seed, every_n_epochs, streaming, name, sensitivity)
        check_numbers(
            1,
            epochs=epochs,
            micro_batches=micro_batches,
            measure_every_n_epochs=measure_every_n_epochs,
            entropy_samples=entropy_samples,
        )
        check_numbers(0, strictly=True, lr=lr, grad_clip=grad_clip)
        if temperature != "paper":
            check_numbers(0, strictly=True, temperature=temperature)
        self.epochs, self.lr, self.grad_clip = epochs, lr, grad_clip
        self.measure_every_n_epochs = measure_every_n_epochs
        self.weights = weights or LossWeights()
        self.temperature, self.entropy_samples = temperature, entropy_samples
        self.train_what, self.lora_rank = train, lora_rank
        self.micro_batches, self.activation_checkpointing = micro_batches, activation_checkpointing

    def build(self, data: Any, trainer: Any) -> None:
        """Build the model; make the tower's quantizers (and norms or low-rank updates) learnable.

        Args:
            data: see :meth:`QuantModule.build`.
            trainer: see :meth:`QuantModule.build`.
        """
        if self.calibrator is not None:
            return
        super().build(data, trainer)
        passes = self._built().passes
        make_learnable(
            self.structure, self.train_what, self.lora_rank, self.seed, self._built().device
        )
        if isinstance(passes, WholeModel):
            passes.activation_checkpointing = self.activation_checkpointing
        else:  # Lightning does not see the model, but DDP must see what it learns
            self.learned = nn.ParameterList(self.quantizer_parameters())

    def quantizer_parameters(self) -> list[nn.Parameter]:
        """Return what is learned: bounds, weight clips and adapters of tower and projector."""
        return tower_parameters(self.structure)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW without weight decay over :meth:`quantizer_parameters`."""
        return torch.optim.AdamW(self.quantizer_parameters(), lr=self.lr, weight_decay=0.0)

    # --- data -----------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Collect statistics, cache the full-precision targets X_v and X_n (they never change)."""
        super().on_train_start()
        calibrator = self._built()
        note_missing_answers(self.structure, calibrator.batches)
        trainer: Any = self.trainer  # sets datamodule on itself, undeclared
        parts = parts_of_process(
            trainer.datamodule,
            self.family,
            calibrator.model,
            self.micro_batches,
            self.structure.sinks,
        )
        ranges = calibrator.statistics.channel_range
        edges = SoftEdges(self.structure, ranges, self.temperature, self.entropy_samples)
        with self.phases("statistics"):
            self.loss = TowerLoss(calibrator.passes, edges, calibrator.batches, parts)

    # --- one step -------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one optimiser step on a batch, the one whose turn it is; none in the final epoch.

        Raises:
            RuntimeError: the loader is at another batch than the optimiser.
        """
        epoch, index = divmod(self.state.steps, self.steps_per_epoch)
        given = batch_number(batch, len(self._built().batches[0]["sample_index"]))
        if not self.finished and given != index:
            raise RuntimeError(f"the loader gives batch {given}, the optimiser is at {index}")
        if index == 0 and not self.finished:
            with self.phases("optimisation"):
                self.state.jacobian = self.loss.jacobian()
        if index == 0 and epoch in (0, *self.state.passes_done):
            self._measure(epoch, "search")
        if self.finished:
            return
        with self.phases("optimisation"):
            self._step(epoch, index)
        if index == self.steps_per_epoch - 1:
            self._measure(epoch + 1, "training")

    def _step(self, epoch: int, index: int) -> None:
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        with torch.enable_grad():
            whole = self._backward if self.micro_batches == 1 else self._backward_in_parts
            terms = whole(index, self.state.steps)
        torch.nn.utils.clip_grad_norm_(self.quantizer_parameters(), self.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rate()
        optimizer.step()
        self.state.steps += 1
        self._log(epoch, index, {name: float(value.detach()) for name, value in terms.items()})

    def _zero(self) -> Tensor:
        """Return 0 with a gradient path to every learned parameter.

        Samples without an image leave the tower unused. A process or part that has only such
        samples must still take part in every reduction of the backward pass, and DDP wants every
        gradient. Of a bare sum all gradients would be one tensor, and what is added to one of them
        later would be in all.
        """
        parts = ((p * 0.0).sum() for p in self.quantizer_parameters())
        return sum(parts, torch.zeros((), device=self.device))

    def _learning_rate(self) -> float:
        """Cosine from ``lr`` to 0, a function of the step alone so that nothing has to be
        restored.
        """
        angle = math.pi * self.state.steps / (self.epochs * self.steps_per_epoch)
        return self.lr * 0.5 * (1 + math.cos(angle))

    def _sums(self, index: int, part: int, step: int) -> Sums:
        return self.loss.sums(index, part, self.seed * 1_000_003 + step, self._zero())

    def loss_terms(self, index: int, step: int) -> dict[str, Tensor]:
        """Return ``reg`` (0 without answers), ``ent``, ``err`` and ``total`` (eq. 8-10) of batch
        ``index``, over all processes and parts.

        Args:
            index: which calibration batch.
            step: seeds the draw of the entropy's triples.
        """
        return self._terms(index, step, self.state.jacobian)

    def _terms(self, index: int, step: int, jacobian: Jacobian) -> dict[str, Tensor]:
        sums = added(self._sums(index, part, step) for part in range(self.micro_batches))
        pooled = {name: all_sum_with_gradient(x) for name, x in sums.items()}
        return self.loss.terms(pooled, self.weights, jacobian)

    def _backward(self, index: int, step: int) -> dict[str, Tensor]:
        """Leave the gradient of a batch's loss in the parameters, and return its terms."""
        terms = self.loss_terms(index, step)
        self.manual_backward(terms["total"] + 0.0 * self.anchor)
        return terms

    def _backward_in_parts(self, index: int, step: int) -> dict[str, Tensor]:
        """Do so holding the graph of one part at a time.

        The loss L is a function of the sums S over all parts: each part's share of dL is
        dL/dS times the derivative of its own sums.
        """
        parts = range(self.micro_batches)
        with torch.no_grad():
            sums = added(self._sums(index, part, step) for part in parts)
            pooled = {name: all_sum(x) for name, x in sums.items()}
        leaves = {name: x.requires_grad_() for name, x in pooled.items()}
        terms = self.loss.terms(leaves, self.weights, self.state.jacobian)
        slopes = torch.autograd.grad(terms["total"], list(leaves.values()))
        for part in parts:
            own = self._sums(index, part, step)
            shares = [(own[n] * slope).sum() for n, slope in zip(leaves, slopes, strict=True)]
            # DDP takes the mean over the processes, of which each adds its share
            total = world()[1] * torch.stack(shares).sum()
            self.manual_backward(total + 0.0 * self.anchor)
        return terms

    @torch.no_grad()
    def _measure(self, epoch: int, after: Literal["search", "training"]) -> None:
        """Append the terms of the whole calibration set to ``state.loss_fixed``, once per moment.

        Steps differ in batch, triples and, by epoch, in the Jacobian weights. Here every batch has
        the triples and the weights of the first epoch, so that only what was learned or searched
        makes a difference.
        """
        if epoch % self.measure_every_n_epochs and epoch != self.epochs:
            return
        found, moment = self.state.loss_fixed, {"epoch": epoch, "after": after}
        if any(moment.items() <= measured.items() for measured in found):
            return  # before the run was resumed
        if not found:
            self.state.jacobian_fixed = self.state.jacobian
        batches = range(self.steps_per_epoch)
        with self.phases("measurements"):
            terms = mean_terms([self._terms(i, i, self.state.jacobian_fixed) for i in batches])
        found.append(moment | terms)
        self.log_scalars(fixed_loss_scalars(found), self.state.steps)

    def _log(self, epoch: int, index: int, values: dict[str, float]) -> None:
        self.log_scalars({f"detail/loss/{n}": x for n, x in values.items()}, self.state.steps)
        self.last_loss = values["total"]
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
            "measure_every_n_epochs": self.measure_every_n_epochs,
        }
        return super().identity() | own

"""Visual-encoder optimisation (eq. 8-10) as a LightningModule with learnable quantizer
parameters.
"""

import math
from collections.abc import Iterable
from functools import reduce
from typing import Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.calibration.stream_run import Streaming
from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.passes import WholeModel
from qvlm_lightning.forward.samples import Batch, with_image_rows
from qvlm_lightning.methods.base import Method
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.adapters import add_lora, add_norm_shifts
from qvlm_lightning.nn.distributed import all_sum, all_sum_with_gradient, world
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.vision.answers import note_missing_answers
from qvlm_lightning.vision.soft_edges import SoftEdges
from qvlm_lightning.vision.tower_loss import LossWeights, Sums, TowerLoss

Trainables = Literal["bounds", "norms", "lora"]


class VisualEncoderOptimization(QuantModule):
    """Learns the tower's clip bounds for the whole model's output; the decoder's quantizers stay
    frozen.

    Loss: ``L_reg + lambda_ent * L_ent + lambda_err * L_err`` (eq. 10).

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
        name: str | None = None,
        sensitivity: bool = False,
    ) -> None:
        super().__init__(family, scheme, method, seed, every_n_epochs, streaming, name, sensitivity)
        if micro_batches < 1:
            raise InputError(f"micro_batches {micro_batches} is not allowed; at least 1")
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
        if self.train_what == "norms":
            add_norm_shifts(self.structure, self._built().device)
        elif self.train_what == "lora":
            add_lora(self.structure, self.lora_rank, self.seed, self._built().device)
        for parameter in self.quantizer_parameters():
            parameter.requires_grad_(True)
        if not self.quantizer_parameters():
            raise InputError(
                "visual-encoder optimisation has nothing to learn: vision and projector are both "
                "at 16 bits"
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
        """Collect statistics, cache the full-precision targets X_v and X_n (they never change,
        A18).
        """
        super().on_train_start()
        calibrator = self._built()
        note_missing_answers(self.structure, calibrator.batches)
        edges = SoftEdges(
            self.structure,
            calibrator.statistics.channel_range,
            self.temperature,
            self.entropy_samples,
        )
        self.loss = TowerLoss(calibrator.passes, edges, calibrator.batches, self._parts())

    def _parts(self) -> list[list[Batch]]:
        """Return of every batch the parts that this process runs.

        They are cut as if every part had a process of its own.
        """
        trainer: Any = self.trainer  # sets datamodule on itself, undeclared
        rank, size = world()
        model = self._built().model
        columns = [
            [with_image_rows(self.family, model, batch) for batch in batches]
            for batches in (
                trainer.datamodule.rank_batches(
                    rank * self.micro_batches + part, size * self.micro_batches
                )
                for part in range(self.micro_batches)
            )
        ]
        return [list(parts) for parts in zip(*columns, strict=True)]

    # --- one step -------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one optimiser step on the batch that ``state.steps`` says; none in the final
        epoch.
        """
        if self.finished:
            return
        epoch, index = divmod(self.state.steps, self.steps_per_epoch)
        if index == 0:
            self.state.jacobian = self.loss.jacobian()
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
        sums = _added(self._sums(index, part, step) for part in range(self.micro_batches))
        pooled = {name: all_sum_with_gradient(x) for name, x in sums.items()}
        return self.loss.terms(pooled, self.weights, self.state.jacobian)

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
            sums = _added(self._sums(index, part, step) for part in parts)
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


def tower_parameters(structure: Structure) -> list[nn.Parameter]:
    """Return bounds, weight clips and adapters of tower and projector."""
    parameters: list[nn.Parameter] = []
    for name in (n for n in structure.towers if n != "language"):
        for site in structure.towers[name].sites:
            if site.quantizer.num_bits < 16:
                high = [site.quantizer.high_ratio]
                dynamic = site.quantizer.mode == "dynamic_token"
                parameters += high if dynamic else [site.quantizer.low_ratio, *high]
            parameters += [
                x.weight_quantizer.clip_ratio
                for x in site.linears.values()
                if x.weight_quantizer.active
            ]
        for unit in structure.towers[name].units:
            parameters += [p for n, p in unit.module.named_parameters() if ".adapter." in n]
    return parameters


def _added(parts: Iterable[Sums]) -> Sums:
    """Return the sums over parts that all name the same ones."""
    return reduce(lambda one, other: {n: x + other[n] for n, x in one.items()}, parts)

"""The LightningModule around a calibrator: build, freeze, slim checkpoints; trains nothing."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.calibration.checkpoint import check_checkpoint
from qvlm_lightning.calibration.checks import check_before
from qvlm_lightning.calibration.schedule import PassSettings, kept_candidates, note_idle_search
from qvlm_lightning.calibration.sensitivity import sensitivity_report
from qvlm_lightning.calibration.state import CalibrationState
from qvlm_lightning.calibration.stream_run import Streaming, open_model, prepare, ram_for_weights
from qvlm_lightning.calibration.watched import WatchedModule
from qvlm_lightning.errors import InputError
from qvlm_lightning.estimate.fits import check_memory
from qvlm_lightning.forward.samples import Batch, fingerprints
from qvlm_lightning.forward.stream import StreamedModel
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.proxies import Proxy
from qvlm_lightning.methods.requirements import leaves_whole_tokens
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.names import checked_name
from qvlm_lightning.nn.calibrated import calibrated
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.progress import bar
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.streamed import StreamedWeights


class QuantModule(WatchedModule):
    """Calibration of a vision-language model; what happens when is up to the callbacks.

    Time is counted in ``state.steps``, the optimiser steps done; a resumed run sees the same data.
    One more epoch than ``epochs`` is run: in it the final pass takes place, nothing is trained.

    Args:
        family: the model.
        scheme: widths, modes, groups, ignore list, overrides.
        method: decides blocks whenever a callback (``PercentileSearch``) says so; ``None`` leaves
            every range on min-max.
        seed: seed of reservoirs and draws.
        every_n_epochs: distance between re-partitions and searches of the decoder
            (docs/paper.md, A21).
        streaming: the model is never on the device as a whole: layers are read from its folder when
            needed. ``true`` keeps what waits for the next layer in RAM, beside a GPU also weights
            that fit in half of it; ``disk`` in the run folder. Decisions are the same.
        name: of the run in reports and tables; default: the method's.
        sensitivity: at the end, measure which part and layers hurt by themselves; costs a forward
            pass of the search batches per part and layer.
    """

    epochs, optimises, micro_batches, activation_checkpointing, exports = 0, False, 1, False, False

    def __init__(
        self,
        family: VLMFamily,
        scheme: Scheme | None = None,
        method: Method | None = None,
        seed: int = 0,
        every_n_epochs: int = 5,
        streaming: Streaming = False,
        name: str | None = None,
        sensitivity: bool = False,
    ) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise InputError(f"every_n_epochs {every_n_epochs} is not allowed; at least 1")
        self.family, self.scheme = family, scheme or Scheme()
        self.every_n_epochs = every_n_epochs
        self.seed, self.method, self.sensitivity = seed, method, sensitivity
        if method is not None:
            method.check(self.scheme)
            candidates = method.candidates(self.scheme.activation_mode)
            leaves_whole_tokens(method.name, candidates, self.scheme)
        self.name = name if name is None else checked_name(name)
        self.streaming: Streaming = streaming
        self.automatic_optimization = self.strict_loading = False  # checkpoints lack the model
        self.model: nn.Module | None = None
        self.passes_of: dict[str, PassSettings] = {}
        self.calibrator: Calibrator | None = None
        # DDP refuses a module without a parameter that requires a gradient; nothing reads this one.
        self.anchor = nn.Parameter(torch.zeros(()))

    # --- what callbacks and monitors use ----------------------------------------------------------

    def register_pass(self, callback: str, settings: PassSettings) -> None:
        """Note what a callback will ask for, before the model is built.

        Args:
            callback: its class name.
            settings: what it does between epochs.
        """
        self.passes_of[callback] = settings

    @property
    def run_name(self) -> str:
        """Name of the run in reports and tables."""
        return self.name or (self.method.name if self.method else "minmax")

    @property
    def max_depth(self) -> int | None:
        """Most units in a block; ``None`` without a partition."""
        depths = [s.max_depth for s in self.passes_of.values() if s.max_depth is not None]
        return max(depths, default=None)

    @property
    def candidates(self) -> list[float]:
        """Candidates of the method's ranges, from the largest down."""
        return self.method.candidates(self.scheme.activation_mode) if self.method else [1.0]

    @property
    def state(self) -> CalibrationState:
        """Decisions so far."""
        return self._built().state

    @property
    def structure(self) -> Structure:
        """Towers, units and sites."""
        return self._built().structure

    @property
    def streamed_weights(self) -> StreamedWeights | None:
        """Where the weights of a streamed model come from."""
        passes = self._built().passes
        return passes.weights if isinstance(passes, StreamedModel) else None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch: the number of calibration batches."""
        return len(self._built().batches)

    @property
    def next_batch(self) -> int:
        """Number of the batch that the next optimiser step takes."""
        return self.state.steps % self.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether all optimiser steps are done."""
        return self.state.steps >= self.epochs * self.steps_per_epoch

    def epoch_due(self, done: list[int]) -> int | None:
        """Return the epoch whose pass is due now: epoch 0, every n-th, and the final one.

        Args:
            done: epochs whose pass has taken place.
        """
        epoch, offset = divmod(self.state.steps, self.steps_per_epoch)
        due = offset == 0 and (epoch % self.every_n_epochs == 0 or epoch >= self.epochs)
        return epoch if due and epoch not in done else None

    def towers_at(self, epoch: int) -> tuple[str, ...]:
        """Return which towers a pass treats; after epoch 0 the tower's ranges belong to the
        optimisation.
        """
        return tuple(self.structure.towers) if epoch == 0 else ("language",)

    def repartition(self, epoch: int, proxy: Proxy, **options: Any) -> None:
        """Measure the dependency and cut the towers into blocks; options of
        :meth:`Calibrator.repartition`.
        """
        self._built().repartition(self.towers_at(epoch), proxy, **options)
        self.state.partitions_done.append(epoch)
        partition = {n: [list(b) for b in blocks] for n, blocks in self.state.partition.items()}
        self.state.partitions.append({"epoch": epoch, "partition": partition})

    def search(self, epoch: int) -> None:
        """Let the method decide the blocks of the towers that are due."""
        assert self.method is not None
        self._built().search(self.towers_at(epoch), self.method, f"epoch{epoch}")
        self.state.passes[-1]["epoch"] = epoch
        self.state.passes_done.append(epoch)

    # --- Lightning's hooks ------------------------------------------------------------------------

    def build(self, data: Any, trainer: Any) -> None:
        """Load the model, freeze it and put the quantizers in; idempotent.

        Args:
            data: gives the calibration batches; already set up.
            trainer: tells the run folder, and who shows progress.
        """
        if self.calibrator is not None:
            return
        root, weights = Path(trainer.default_root_dir), None
        batches = data.calibration_batches()  # before the model, which takes longer
        if self.streaming:
            ram = ram_for_weights(self.streaming, trainer.num_devices)
            model, weights = open_model(self.family, trainer.strategy.root_device, ram)
            object.__setattr__(self, "model", model)  # Lightning would move what has no weights
        else:
            model = self.model = self.family.load_model()
        check_before(self, model, batches, list(data.calibration_ids))
        self.calibrator = Calibrator(
            model,
            self.family,
            self.scheme,
            batches,
            data.search_batches(),
            seed=self.seed,
            progress_folder=None if trainer.fast_dev_run else root / "search",
            progress=bar if trainer.is_global_zero else None,
            weights=weights,
        )
        if self.method is not None:
            self.calibrator.prepare(self.method)
        check_memory(self, trainer)
        note_idle_search(self.method, self.structure, trainer.is_global_zero)
        self.percentiles: list[float] | None = None
        if isinstance(self.calibrator.passes, StreamedModel):
            mode, every = self.scheme.activation_mode, self.passes_of.values()
            self.percentiles = kept_candidates(self.method, every, mode)
            prepare(self, self.calibrator.passes, trainer)
        self.structure.notes += getattr(data, "notes", [])
        self.calibration_ids = list(data.calibration_ids)

    def configure_model(self) -> None:
        """Build, where the program has not done so already."""
        trainer: Any = self.trainer  # sets datamodule and fast_dev_run on itself, undeclared
        # not on the accelerator: as when the program builds
        with self.phases("loading the model"), torch.device("cpu"):
            self.build(trainer.datamodule, trainer)

    def on_train_start(self) -> None:
        """Collect the statistics; a restored run keeps its ranges."""
        with self.phases("statistics"):
            self._built().collect(self.percentiles)
        self.structure.enable(True)

    def on_fit_end(self) -> None:
        """Remove what only a run needs that goes on."""
        if self.trainer.current_epoch > self.epochs:
            self._built().finish()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing to train."""

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Nothing to optimise."""
        return None

    # --- checkpoints ------------------------------------------------------------------------------

    def quantizer_state(self) -> dict[str, Tensor]:
        """Return every tensor of quantizers and adapters by its name: megabytes, not the model."""
        return dict(calibrated(self._built().model))

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree on with the run that resumes from it."""
        return {
            "model": self._built().fingerprint,
            "scheme": self.scheme.identity(),
            "epochs": self.epochs,
            "every_n_epochs": self.every_n_epochs,
            "seed": self.seed,
            "calibration_ids": list(self.calibration_ids),
            **fingerprints(self._built().batches),
            "batches": [len(b["sample_index"]) for b in self._built().batches],
            "search_batches": [len(b["sample_index"]) for b in self._built().search_batches],
            "method": self.method.settings() if self.method else None,
            "schedule": {name: s.settings for name, s in sorted(self.passes_of.items())},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the quantizers, drop the model."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = {
            f"model.{n}": v.detach() for n, v in self.quantizer_state().items()
        }
        checkpoint["calibration"] = {"identity": self.identity(), "state": self.state.to_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the checkpoint, then take over its decisions."""
        self.check(checkpoint)
        super().on_load_checkpoint(checkpoint)
        self.state.update(checkpoint["calibration"]["state"])
        if self.streaming:  # Lightning does not see the model
            tensors = {n.removeprefix("model."): v for n, v in checkpoint["state_dict"].items()}
            self._built().model.load_state_dict(tensors, strict=False)
        self._built().restore_changes()

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint belongs to this run.

        Raises:
            InputError: see :func:`~qvlm_lightning.calibration.checkpoint.check_checkpoint`.
        """
        check_checkpoint(checkpoint, self.identity(), self.quantizer_state())

    def sensitivity_report(self) -> dict[str, Any] | None:
        """Return which parts and layers hurt, if asked for; called in every process."""
        return sensitivity_report(self._built()) if self.sensitivity else None

    def _built(self) -> Calibrator:
        if self.calibrator is None:
            raise RuntimeError("the model is built by configure_model(), which the Trainer calls")
        return self.calibrator

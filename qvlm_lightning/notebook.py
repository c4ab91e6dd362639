"""Quantize a model that is in memory, from a notebook."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.models.loaded import loaded
from qvlm_lightning.quant.scheme import Scheme

METHODS = ("rtn", "sequential", "cdm", "veo", "qvlm")


class _Given(VQADataModule):
    """Samples from the caller; nothing to evaluate."""

    def __init__(self, samples: Sequence[Sample], **options: Any) -> None:
        super().__init__(calibration_pairs=len(samples), **options)
        self.samples = list(samples)

    def calibration_samples(self) -> list[Sample]:
        return self.samples

    def evaluation_samples(self) -> list[Sample]:
        return []

    def setup(self, stage: str) -> None:
        _ = self.calibration  # nothing is evaluated: only the calibration set is checked


def quantize(
    model: nn.Module,
    processor: Any,
    samples: Sequence[Sample],
    scheme: str | Scheme = "w4a4",
    method: str = "qvlm",
    epochs: int = 10,
    search_pairs: int = 16,
    batch_size: int = 8,
    seed: int = 0,
    output: str | Path | None = None,
) -> nn.Module:
    """Calibrate a model in place: the same path as ``train.py``, without a configuration.

    Args:
        model: a full-precision model of any family (docs/models.md).
        processor: its processor.
        samples: calibration samples with answers.
        scheme: such as ``w4a4``, or a :class:`~qvlm_lightning.quant.scheme.Scheme`.
        method: ``rtn``, ``sequential``, ``cdm``, ``veo`` or ``qvlm``.
        epochs: epochs of visual-encoder optimisation, for ``veo`` and ``qvlm``.
        search_pairs: how many of the samples the search uses.
        batch_size: samples per batch.
        seed: seed of everything random.
        output: run folder for report and artifact; default: nothing is kept.

    Returns:
        ``model``, with quantizers on.

    Raises:
        InputError: an unknown method or scheme, or unusable samples.
    """
    from lightning.pytorch import Trainer, seed_everything

    if method not in METHODS:
        raise InputError(f"method {method!r} is not known; allowed: {', '.join(METHODS)}")
    scheme = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
    family, device = loaded(model, processor), next(model.parameters()).device
    data = _Given(
        samples, family=family, search_pairs=search_pairs, batch_size=batch_size, seed=seed
    )
    seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        module, callbacks = _recipe(method, family, scheme, epochs, seed, keep=output is not None)
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=module.epochs + 1,
            default_root_dir=output or scratch,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=data)
    # the Trainer leaves what it trained on the CPU
    return model.requires_grad_(False).to(device)


def _recipe(
    method: str, family: VLMFamily, scheme: Scheme, epochs: int, seed: int, keep: bool
) -> tuple[Any, list]:
    from qvlm_lightning.calibration import QuantModule, VisualEncoderOptimization
    from qvlm_lightning.callbacks import ArtifactExport, EntropyRepartition, PercentileSearch
    from qvlm_lightning.methods import JointSearch, MinMax, SequentialSearch

    joint = method in ("cdm", "qvlm")
    search = MinMax() if method == "rtn" else JointSearch() if joint else SequentialSearch()
    callbacks: list[Any] = [EntropyRepartition()] if joint else []
    callbacks += [PercentileSearch(), *([ArtifactExport()] if keep else [])]
    if method in ("veo", "qvlm"):
        module: QuantModule = VisualEncoderOptimization(
            family, scheme, search, seed, epochs=epochs, name=method
        )
    else:
        module = QuantModule(family, scheme, search, seed, name=method)
    return module, callbacks

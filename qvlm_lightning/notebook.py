"""Quantize a model that is in memory, from a notebook."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from qvlm_lightning.artifact import save_as_artifact
from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.given import as_samples
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.errors import InputError, check_numbers
from qvlm_lightning.files import check_folder
from qvlm_lightning.foreign_notes import without_foreign_notes
from qvlm_lightning.methods import JointSearch, Method, MinMax, SequentialSearch
from qvlm_lightning.methods.block import Objective
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.models.find import class_at
from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.models.loaded import loaded
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.presets import method_of
from qvlm_lightning.progress import close
from qvlm_lightning.quant.scheme import Scheme

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from qvlm_lightning.calibration import QuantModule

Samples = (
    str | Path | Iterable[Sample | Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | Path]
)
"""What calibration samples may be given as."""
METHODS = ("rtn", "sequential", "cdm", "veo", "qvlm")
PRESETS = (
    "qvlm_plus_fast",
    "qvlm_plus",
    "gptq",
    "mbq",
    "awq",
    "smoothquant",
    "quarot",
    "flatquant",
    "signround",
    "mse",
    "moving_average",
)
"""Names of files in configs/methods, whose settings they have."""


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


@without_foreign_notes()
def quantize(
    model: nn.Module,
    processor: Any,
    samples: Samples,
    scheme: str | Scheme | None = None,
    method: str | Method = "qvlm_plus_fast",
    objective: Objective | None = None,
    candidates: Sequence[float] | None = None,
    epochs: int = 10,
    search_pairs: int = 16,
    batch_size: int = 8,
    seed: int = 0,
    output: str | Path | None = None,
    family: str | type[HubFamily] | None = None,
) -> nn.Module:
    """Calibrate a model in place: the same path as ``train.py``, without a configuration.

    Args:
        model: a full-precision model of any family (docs/models.md).
        processor: its processor.
        samples: calibration samples: a list whose members are
            :class:`~qvlm_lightning.data.Sample`, dicts such as ``{"image": "cat.png", "question":
            "What is it?", "answer": "A cat."}``, or chats (lists of messages); or the path of a
            file of JSON lines. Images may be paths, bytes, data URIs or PIL images.
        scheme: such as ``w4a4``, or a :class:`~qvlm_lightning.quant.scheme.Scheme`; default: 4-bit
            weights and 8-bit activations with one range per token.
        method: ``rtn``, ``sequential``, ``cdm``, ``veo``, ``qvlm``, or a file in configs/methods
            such as ``qvlm_plus_fast``, ``gptq`` or ``awq`` (docs/methods.md); or a
            :class:`~qvlm_lightning.methods.Method` that decides layer by layer.
        objective: ``normalized`` (default) or ``plain``: how outputs are compared, see
            :class:`~qvlm_lightning.methods.Method`.
        candidates: of ranges, falling from 1: percentiles, or in ``dynamic_token`` mode clip
            ratios; default: those of the method.
        epochs: epochs of visual-encoder optimisation, for ``veo`` and ``qvlm``.
        search_pairs: how many of the samples the search uses, at most all.
        batch_size: samples per batch.
        seed: seed of everything random.
        output: run folder for report and artifact; default: nothing is kept.
        family: class of the model's family or its path, such as ``my_package.MyFamily``; default:
            that of the model's ``model_type``.

    Returns:
        ``model``, with quantizers on; ``model.save_pretrained(folder)`` writes its artifact.

    Raises:
        InputError: an unknown method, objective, scheme or family, impossible candidates, or
            unusable samples.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch import Trainer, seed_everything

    from qvlm_lightning.calibration.report import manifest
    from qvlm_lightning.callbacks import ArtifactExport, CalibrationBar

    if any(isinstance(module, QuantLinear) for module in model.modules()):
        raise InputError(
            "the model is quantized already; load it again in full precision and quantize that"
        )
    if output is not None:
        check_folder(Path(output))
    if scheme is None:
        scheme = Scheme.parse("w4a8", activation_mode="dynamic_token")
    scheme = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
    given = as_samples(samples)
    check_numbers(1, search_pairs=search_pairs, epochs=epochs)
    decides = _method(method, scheme, objective, candidates)
    name = method if isinstance(method, str) else method.name
    known = class_at(family) if isinstance(family, str) else family
    held, device = loaded(model, processor, known), next(model.parameters()).device
    sizes = {"search_pairs": min(search_pairs, len(given)), "batch_size": batch_size}
    data = _Given(given, family=held, seed=seed, **sizes)
    data.answers_needed = name in ("veo", "qvlm")  # for L_reg
    seed_everything(seed, verbose=False)
    with tempfile.TemporaryDirectory() as scratch:
        options = {"seed": seed} | ({"epochs": epochs} if name in ("veo", "qvlm") else {})
        module, callbacks = recipe(name, decides, held, scheme, **options)
        callbacks += [CalibrationBar(), *([] if output is None else [ArtifactExport()])]
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
            plugins=LightningEnvironment(),  # what a scheduler says is not about a notebook
        )
        try:
            trainer.fit(module, datamodule=data)
        finally:
            close()  # the bars of a search that ends with a fault
    save_as_artifact(model, processor, manifest(module), module.structure.stored)
    # the Trainer leaves what it trained on the CPU
    return model.requires_grad_(False).to(device)


def _method(
    method: str | Method,
    scheme: Scheme,
    objective: Objective | None,
    candidates: Sequence[float] | None,
) -> Method:
    """Return the method that decides blocks."""
    if isinstance(method, Method):
        if objective is not None or candidates is not None:
            raise InputError(
                f"objective and candidates are given beside a {type(method).__name__}, which has "
                "its own; leave them out"
            )
        return method
    if method in PRESETS:
        if objective is not None or candidates is not None:
            raise InputError(
                f"objective and candidates are given, but {method} has those of its preset; give "
                "a Method with others"
            )
        preset: Method = method_of(method)
        return preset
    if method not in METHODS:
        allowed = ", ".join((*METHODS, *PRESETS))
        raise InputError(f"method {method!r} is not known; allowed: {allowed}")
    chosen = objective or "normalized"
    if method == "rtn":
        if candidates is not None:
            raise InputError("candidates are given, but rtn chooses nothing; leave them out")
        return MinMax(chosen)
    grid = None if candidates is None else list(candidates)
    dynamic = scheme.activation_mode == "dynamic_token"
    search = JointSearch if method in ("cdm", "qvlm") else SequentialSearch
    return search(None if dynamic else grid, grid if dynamic else None, objective=chosen)


def recipe(
    name: str,
    method: Method,
    family: VLMFamily,
    scheme: Scheme,
    max_depth: int = 3,
    **options: Any,
) -> "tuple[QuantModule, list[Callback]]":
    """Return the module of a preset, and the callbacks that act between its epochs.

    Args:
        name: of the preset, one of ``METHODS``, or of a method.
        method: decides blocks.
        family: the model.
        scheme: widths, modes, groups.
        max_depth: most layers in a block, of presets that cut the decoder into blocks.
        options: further ones of the module.
    """
    from qvlm_lightning.calibration import QuantModule, VisualEncoderOptimization
    from qvlm_lightning.callbacks import EntropyRepartition, PercentileSearch

    cuts, optimises = name in ("cdm", "qvlm"), name in ("veo", "qvlm")
    callbacks: list[Callback] = [EntropyRepartition(max_depth)] if cuts else []
    kind = VisualEncoderOptimization if optimises else QuantModule
    module = kind(family, scheme, method, name=name, **options)
    return module, [*callbacks, PercentileSearch()]

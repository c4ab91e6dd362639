"""Artifacts to export: of the embedded model and of small random ones of other families."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from qvlm_lightning.artifact import Artifact, load_artifact, save_artifact
from qvlm_lightning.calibration import Calibrator
from qvlm_lightning.data.collate import collate
from qvlm_lightning.data.sample import Sample
from qvlm_lightning.models.family import VLMFamily, model_inputs
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.models.tiny import WEIGHTS
from qvlm_lightning.quant.scheme import Scheme
from tests.artifact.conftest import batch_of
from tests.models.small.parts import Small


def whole_ranges(structure: Any, statistics: Any) -> None:
    """Give every site the range of all it has seen, and weights clips as a method leaves them."""
    for site in structure.sites:
        low, high = statistics.ranges(site, [1.0])
        site.quantizer.set_range(low[0], high[0], 1.0)
        for linear in site.linears.values():
            clip = linear.weight_quantizer.clip_ratio
            clip.data.copy_(1 - 0.2 * torch.rand(clip.shape, generator=seeded()))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def exported(
    folder: Path,
    family: VLMFamily,
    model: Any,
    scheme: Scheme,
    batches: Sequence[dict[str, Tensor]],
) -> Artifact:
    """Calibrate a model, write its artifact and load it."""
    calibrator = Calibrator(model, family, scheme, list(batches), list(batches))
    calibrator.collect()
    whole_ranges(calibrator.structure, calibrator.statistics)
    calibrator.structure.enable(True)
    manifest: dict[str, Any] = {"method": "rtn", "scheme": scheme.to_dict()}
    sinks = calibrator.structure.sinks
    if sinks is not None:
        manifest["sinks"] = {"prefix": list(sinks.prefix), "tokens": list(sinks.tokens)}
    save_artifact(folder, model, family.load_processor(), manifest)
    return load_artifact(folder)


def tiny_artifact(folder: Path, scheme: Scheme, dtype: str = "float32") -> Artifact:
    """Return an artifact of the embedded model."""
    family = Llava(str(WEIGHTS), dtype=dtype)
    return exported(folder, family, family.load_model(), scheme, [batch_of("calibration", 4)])


def tiny_inputs() -> dict[str, Tensor]:
    return model_inputs(batch_of("test", 6))


def small_artifact(folder: Path, small: Small, scheme: Scheme) -> Artifact:
    """Return an artifact of a small random model."""
    family = small.family("in memory")
    family._processor = small.processor
    return exported(folder, family, small.model(), scheme, [small_batch(small)])


def small_batch(small: Small) -> dict[str, Tensor]:
    image = Image.linear_gradient("L").resize((30, 14)).convert("RGB")
    ImageDraw.Draw(image).ellipse([3, 3, 25, 7], fill="red")
    samples = [
        Sample("a", image, "what color is the square ?", answer="red"),
        Sample("b", None, "what is blue ?", answer="one circle"),
    ]
    return collate(samples, small.processor, with_answer=True)


def values(artifact: Artifact, name: str) -> Tensor:
    """Return (code - zero point) x scale of a layer in float64, group by group."""
    linear = artifact.model.get_submodule(name)
    quantizer = linear.weight_quantizer
    codes = quantizer.codes(linear.weight).double()
    scale, zero_point = (x.double() for x in quantizer.qparams(linear.weight))
    width = codes.shape[1] // scale.shape[1]
    groups = [
        (codes[:, g * width : (g + 1) * width] - zero_point[:, g : g + 1]) * scale[:, g : g + 1]
        for g in range(scale.shape[1])
    ]
    return torch.cat(groups, dim=1)

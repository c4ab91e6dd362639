"""What ``qvlm quantize`` chooses for a model and data: type, pairs, what stays in memory."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qvlm_lightning.commands._plan_workload import read
from qvlm_lightning.data.base import VQADataModule
from qvlm_lightning.data.chat import ChatData
from qvlm_lightning.data.source import Source
from qvlm_lightning.errors import InputError, first_line
from qvlm_lightning.estimate.fits import memory_pools, shortage
from qvlm_lightning.estimate.memory import allocations
from qvlm_lightning.estimate.workload import Allocation, Workload
from qvlm_lightning.models.find import family_for
from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.presets import config_file
from qvlm_lightning.quant.scheme import Scheme

PAIRS, SEARCH_PAIRS, BATCH = 64, 16, 8
"""What a calibration takes, where the data has as many."""
_TYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        family: class path of the model's family.
        dtype: type in which the model computes.
        pairs: calibration pairs.
        batch_size: pairs at once.
        streaming: ``False``, ``True`` or ``"disk"``.
        sentences: what was chosen and why, for people.
    """

    family: str
    dtype: str
    pairs: int
    batch_size: int
    streaming: bool | str
    sentences: tuple[str, ...]

    def options(self, model: str) -> list[str]:
        """Return the options of ``train.py fit`` that say it.

        Args:
            model: folder or repository.
        """
        return [
            f"--model.family={self.family}",
            f"--model.family.path={model}",
            f"--model.family.dtype={self.dtype}",
            f"--model.streaming={str(self.streaming).lower()}",
            *self.sizes(),
        ]

    def sizes(self) -> list[str]:
        """Return the options of the data."""
        return [
            f"--data.calibration_pairs={self.pairs}",
            f"--data.search_pairs={min(SEARCH_PAIRS, self.pairs)}",
            f"--data.batch_size={self.batch_size}",
        ]


def scheme_options(name: str, mode: str | None) -> list[str]:
    """Return the options of ``train.py fit`` for a scheme.

    Args:
        name: of a file in configs/schemes, or what :meth:`Scheme.parse` reads.
        mode: activation mode; ``None`` for that of the file, or one range per token.

    Raises:
        InputError: the name cannot be read, or the mode is none.
    """
    if mode is not None:
        Scheme(activation_mode=mode)  # type: ignore[arg-type]  # refuses what is none
    with suppress(InputError):
        chosen = [f"--model.scheme.activation_mode={mode}"] if mode else []
        return [f"--config={config_file('schemes', name)}", *chosen]
    scheme = Scheme.parse(name, activation_mode=mode or "dynamic_token")
    parts = ("vision", "projector", "language")
    widths = [
        f"--model.scheme.{part}.{own}={getattr(scheme.part(part), own)}"
        for part in parts
        for own in ("weight_bits", "activation_bits")
    ]
    return [
        *widths,
        f"--model.scheme.activation_mode={scheme.activation_mode}",
        f"--model.scheme.sink={scheme.sink}",
    ]


def family_of(model: str, dtype: str | None) -> HubFamily:
    """Return the family of a model by its configuration.

    Args:
        model: a folder, or a repository of the hub.
        dtype: type in which it will compute; ``None`` for that of its files, but float32 on a CPU
            for a model in float16, which few CPUs compute with.

    Raises:
        InputError: there is no such model, or no family for it.
    """
    from transformers import PretrainedConfig

    if Path(model).exists() and not (Path(model) / "config.json").is_file():
        raise InputError(f"--model {model!r} has no config.json; give a Hugging Face model folder")
    try:
        settings, _ = PretrainedConfig.get_config_dict(model)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--model {model!r} is no model folder, nor a model of the hub: {first_line(error)}"
        ) from error
    found = family_for(str(settings.get("model_type")))
    stored = str(settings.get("dtype") or settings.get("torch_dtype") or "float32")
    stored = stored.removeprefix("torch.")
    if stored not in _TYPES or (stored == "float16" and not torch.cuda.is_available()):
        stored = "float32"
    return found(model, dtype or stored)


def data_of(path: str, family: HubFamily, seed: int) -> tuple[VQADataModule, int]:
    """Return the calibration data and how many samples it has.

    Args:
        path: a file of JSON lines, or a folder (docs/your_own_data.md).
        family: makes the batches.
        seed: draws the samples.

    Raises:
        InputError: it cannot be read, or is empty.
    """
    everything = ChatData(family, Source(path), calibration_pairs=sys.maxsize, seed=seed)
    count = len(everything.calibration_samples())
    if count == 0:
        raise InputError(f"--data {path!r} holds no samples; at least one with an image is needed")
    pairs = min(PAIRS, count)
    data = ChatData(
        family,
        Source(path),
        calibration_pairs=pairs,
        search_pairs=min(SEARCH_PAIRS, pairs),
        batch_size=min(BATCH, pairs),
        seed=seed,
    )
    return data, count


def choose(family: HubFamily, data: VQADataModule, options: Sequence[str]) -> Choice:
    """Choose what stays in memory, so that the calibration fits this machine.

    Args:
        family: the model.
        data: calibration data.
        options: the other options of ``train.py fit``: method, scheme, devices.

    Raises:
        InputError: nothing fits; says what lacks, and what would.
    """
    kind = type(family)
    made = Choice(
        f"{kind.__module__}.{kind.__qualname__}",
        family.dtype,
        data.calibration_pairs,
        data.batch_size,
        False,
        (),
    )
    planned = read([*options, *made.options(family.path)])
    model = family.weightless()
    structure = quantize_model(model, family, planned.scheme, torch.device("cpu"))
    batch = data.calibration_batches()[0]
    rows = batch["image_rows"] if "image_rows" in batch else batch["has_image"]
    pairs = len(batch["sample_index"])
    workload = Workload(
        pairs=planned.pairs,
        search_pairs=planned.search_pairs,
        batch_size=planned.batch_size,
        tokens=batch["input_ids"].shape[1],
        patches=-(-(family.vision_positions(model) or 1) * max(int(rows.sum()), 1) // pairs),
        depth=planned.depth,
        method=planned.method,
        processes=planned.processes,
        optimises=planned.optimises,
        micro_batches=planned.micro_batches,
    )
    measure: Callable[[Workload], list[Allocation]] = partial(allocations, model, structure)
    fitting, lack = _fitting(measure, workload)
    if fitting is None:
        raise InputError(f"the model does not fit this machine: {lack}")
    streaming: bool | str = "disk" if fitting.spills else fitting.streaming
    said = [f"{made.dtype} weights, {made.pairs} calibration pairs in batches of {made.batch_size}"]
    if streaming:
        where = "disk" if fitting.spills else "RAM"
        said.append(f"layers are read when they are needed, hidden states wait in {where}: {lack}")
    return replace(made, streaming=streaming, sentences=tuple(said))


def _fitting(
    measure: Callable[[Workload], list[Any]], workload: Workload
) -> tuple[Workload | None, str]:
    """Return the first way to run a workload that fits, and why the way before it does not."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pools, lack = memory_pools(device, workload.processes), ""
    ways = ((False, False), (True, False), (True, True))
    for streaming, spills in ways:
        way = replace(workload, streaming=streaming, spills=spills)
        missing = [m for pool in pools if (m := shortage(measure, way, pool)) is not None]
        if not missing:
            return way, lack
        lack = missing[0]
    return None, lack

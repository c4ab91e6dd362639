"""A calibration of a model from end to end, with what it took."""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

import torch
import yaml

from qvlm_lightning.calibration.calibrator import Calibrator
from qvlm_lightning.calibration.visual_encoder import VisualEncoderOptimization
from qvlm_lightning.forward.samples import Batch
from qvlm_lightning.methods.base import Method
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.peak_memory import peak_bytes, reset_peak
from qvlm_lightning.presets import config_file, method_of
from qvlm_lightning.quant.scheme import Scheme

TOWERS = ("vision", "projector", "language")
REST = "rest"


@dataclass(frozen=True)
class Named:
    """A method to rehearse.

    Attributes:
        name: of its file in configs/methods, or of the method itself.
        method: the method.
        depth: most layers in a block.
        optimises: whether the visual encoder is optimised, which is not rehearsed.
    """

    name: str
    method: Method
    depth: int = 1
    optimises: bool = False

    @classmethod
    def of(cls, name: str) -> "Named":
        """Return the method of a file in configs/methods.

        Raises:
            InputError: there is no such file.
        """
        values = yaml.safe_load(config_file("methods", name).read_text(encoding="utf-8"))
        taken = [c.get("init_args") or {} for c in values["trainer"]["callbacks+"]]
        depth = max((t["max_depth"] for t in taken if "max_depth" in t), default=1)
        model = resolve_name(values["model"]["class_path"])
        return cls(name, method_of(name), depth, issubclass(model, VisualEncoderOptimization))


@dataclass
class Measured:
    """What one calibration took, or should take.

    Attributes:
        statistics: tower -> seconds of its layers in the pass over all pairs, and what is left of
            preparing the model and of statistics.
        sites: of the model.
        search: tower -> seconds.
        forwards: tower -> evaluations of one layer on one batch.
        held: bytes before the search.
        nbytes: peak of the search above them.
    """

    statistics: dict[str, float] = field(default_factory=dict)
    sites: int = 0
    search: dict[str, float] = field(default_factory=dict)
    forwards: dict[str, float] = field(default_factory=dict)
    held: int = 0
    nbytes: float = 0.0


def calibrated(
    family: VLMFamily,
    scheme: Scheme,
    named: Named,
    batches: Sequence[Batch],
    search_batches: Sequence[Batch],
    device: torch.device,
) -> Measured:
    """Calibrate a model as ``train.py fit`` does, and return what it took; nothing is kept.

    Args:
        family: of the model.
        scheme: widths and modes.
        named: the method; blocks are as large as they may.
        batches: all calibration batches.
        search_batches: those of the search.
        device: where layers run.
    """
    found = Measured()
    calibrator = Calibrator(family.load_model().to(device), family, scheme, batches, search_batches)
    found.sites = len(calibrator.structure.sites)
    with _timed(device) as spent, _timed_layers(calibrator.structure, device) as layers:
        calibrator.prepare(named.method)
        calibrator.collect()
    found.statistics = layers | {REST: spent[0] - sum(layers.values())}
    found.held = held_bytes(device)
    for name in TOWERS:
        units, depth = len(calibrator.structure.towers[name].units), named.depth
        calibrator.state.partition[name] = [
            [first, min(first + depth, units) - 1] for first in range(0, units, depth)
        ]
        with _timed(device) as spent:
            calibrator.search([name], named.method, name)
        found.search[name] = spent[0]
        found.forwards[name] = calibrator.state.passes[-1]["layer_forwards"]
    found.nbytes = max(0, _peak(device) - found.held)
    return found


@contextmanager
def _timed(device: torch.device) -> Iterator[list[float]]:
    """Within the block, measure seconds; found behind it."""
    found: list[float] = []
    start = _clock(device)
    yield found
    found.append(_clock(device) - start)


@contextmanager
def _timed_layers(structure: Structure, device: torch.device) -> Iterator[dict[str, float]]:
    """Within the block, measure seconds of the layers of every tower."""
    found = dict.fromkeys(TOWERS, 0.0)
    with ExitStack() as stack:
        for name in TOWERS:

            def before(*_: Any, name: str = name) -> None:
                found[name] -= _clock(device)

            def after(*_: Any, name: str = name) -> None:
                found[name] += _clock(device)

            for unit in structure.towers[name].units:
                stack.callback(unit.module.register_forward_pre_hook(before).remove)
                stack.callback(unit.module.register_forward_hook(after).remove)
        yield found


def _clock(device: torch.device) -> float:
    """Return seconds: of computing, on all cores, or of the wall where a GPU computes."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def held_bytes(device: torch.device) -> int:
    """Return the bytes that this process holds now, on a GPU those of its tensors; the look for a
    peak begins.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    reset_peak()
    return peak_bytes() or 0


def _peak(device: torch.device) -> int:
    """Return the most that has been held since :func:`_held`, bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes() or 0

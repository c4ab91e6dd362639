"""Seconds and memory of methods, from a rehearsal on a few layers as wide as those of the model.

Everything that takes time for long is linear in the number of layers: a block is decided after the
other. Within a layer a part does not depend on the calibration set (solving, steps of learning,
rounding), the rest is linear in the batches. So a calibration of one block of every tower, once on
one batch and once on two, tells all of it, on the machine on which it runs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table

from qvlm_lightning.commands._plan_measured import (
    REST,
    TOWERS,
    Measured,
    Named,
    calibrated,
    held_bytes,
)
from qvlm_lightning.commands._plan_stand_in import StandIn, patches_of, shape_like
from qvlm_lightning.commands._random_model import make_batches
from qvlm_lightning.errors import InputError
from qvlm_lightning.estimate.memory import MemoryFormulas
from qvlm_lightning.estimate.sizes import ModelSizes, in_gib
from qvlm_lightning.estimate.workload import Workload
from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.quant.scheme import Scheme


@dataclass(frozen=True)
class Forecast:
    """What a calibration should take.

    Attributes:
        method: its name.
        seconds: of preparing, statistics and search; CPU-seconds of one process, or on a GPU
            seconds.
        statistics: those of preparing and statistics.
        layer_forwards: evaluations of one layer on one batch in the search.
        nbytes: peak of the process, its libraries included; on a GPU that of the device.
        refused: why the method does not run, or nothing.
    """

    method: str
    seconds: float = 0.0
    statistics: float = 0.0
    layer_forwards: int = 0
    nbytes: int = 0
    refused: str = ""

    def values(self) -> dict[str, Any]:
        """Return the forecast as plain values."""
        return asdict(self)


class Rehearsal:
    """Rehearses methods for a model.

    Args:
        model: without weights, with quantized layers.
        family: of the model.
        structure: of the model.
        scheme: widths and modes.
        workload: pairs, batches and lengths.
        device: where to rehearse.

    Attributes:
        rehearsed: method -> what it took on one and on two batches.
    """

    def __init__(
        self,
        model: Any,
        family: HubFamily,
        structure: Structure,
        scheme: Scheme,
        workload: Workload,
        device: torch.device,
    ) -> None:
        self.model, self.structure, self.family = model, structure, family
        self.scheme, self.workload, self.device = scheme, workload, device
        self.patches = patches_of(workload.patches, workload.tokens)
        self.resident = held_bytes(device)
        self.rehearsed: dict[str, tuple[Measured, Measured]] = {}

    def forecast(self, named: Named) -> Forecast:
        """Return what a method should take; all its blocks are taken to be as large as they may.

        Args:
            named: the method.
        """
        name, method, depth = named.name, named.method, named.depth
        try:
            method.check(self.scheme)
        except InputError as error:
            return Forecast(name, refused=str(error))
        if not self.rehearsed:  # what is loaded and compiled at first belongs to no method
            self._calibrate(named, 1)
        if name not in self.rehearsed:
            self.rehearsed[name] = self._calibrate(named, 1), self._calibrate(named, 2)
        one, two = self.rehearsed[name]
        workload = self.workload
        pairs = workload.pairs if method.pairs == "all" else workload.search_pairs
        every, used = (-(-n // workload.batch_size) for n in (workload.pairs, pairs))
        layers = {name: len(tower.units) for name, tower in self.structure.towers.items()}
        rehearsed = {"vision": depth, "projector": 1, "language": depth}
        share = {name: layers.get(name, 0) / rehearsed[name] for name in TOWERS}
        longer = {"vision": workload.patches / (self.patches + 1)}
        share[REST] = len(self.structure.sites) / one.sites
        statistics, seconds, forwards = 0.0, 0.0, 0.0
        for part, spent in one.statistics.items():
            at = every * longer.get(part, 1.0)
            statistics += share[part] * _line(spent, two.statistics[part], at)
        for tower in TOWERS:
            at = used * longer.get(tower, 1.0)
            seconds += share[tower] * _line(one.search[tower], two.search[tower], at)
            forwards += share[tower] * _line(one.forwards[tower], two.forwards[tower], used)
        return Forecast(
            name,
            statistics + seconds,
            statistics,
            round(forwards),
            round(self._base() + _line(one.nbytes, two.nbytes, used)),
        )

    def _base(self) -> int:
        """Return what is held before a search: libraries, weights, reservoirs."""
        formulas = MemoryFormulas(ModelSizes(self.model, self.structure), self.workload)
        kept = [a.nbytes for a in formulas.allocations() if a.what == "reservoirs"]
        on_device = max(kept, default=0) if self.device.type == "cpu" else 0
        return self.resident + formulas.sizes.total + on_device

    def _calibrate(self, named: Named, count: int) -> Measured:
        """Calibrate a stand-in on some batches."""
        tokens, size = self.workload.tokens, self.workload.batch_size
        config = shape_like(self.structure, self.family, named.depth, self.patches, tokens)
        batches = make_batches(count * size, size, tokens, config)
        family = StandIn(config, self.family.dtype)
        return calibrated(family, self.scheme, named, batches, batches, self.device)


def _line(one: float, two: float, count: float) -> float:
    """Return the value at ``count`` of a line through those at 1 and 2; it does not fall.

    Example:
        >>> _line(3.0, 5.0, 4), _line(3.0, 2.9, 4)
        (9.0, 3.0)
    """
    return one + max(0.0, two - one) * (count - 1)


def table_of(found: Sequence[Forecast], methods: Sequence[Named], device: torch.device) -> Table:
    """Return a table of forecasts, one line per method."""
    seconds = "CPU-seconds" if device.type == "cpu" else "seconds"
    table = Table(title="Calibration, rehearsed", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("method")
    for name in ("layer-forwards", f"statistics, {seconds}", f"in all, {seconds}", "peak, GiB"):
        table.add_column(name, justify="right")
    table.add_column("note", overflow="fold")
    for one, named in zip(found, methods, strict=True):
        note = "without the epochs of its optimisation" if named.optimises else ""
        figures = ["", "", "", ""]
        if not one.refused:
            times = (f"{x:,.1f}" for x in (one.statistics, one.seconds))
            figures = [f"{one.layer_forwards:,}", *times, in_gib(one.nbytes)]
        table.add_row(one.method, *figures, one.refused or note)
    return table

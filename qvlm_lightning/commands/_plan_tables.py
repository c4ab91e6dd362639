"""Plan of a calibration as tables for people and as plain values for programs."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from qvlm_lightning.estimate.memory import allocations
from qvlm_lightning.estimate.sizes import GIB, PartSize, in_gib, part_sizes
from qvlm_lightning.estimate.workload import (
    DEVICE,
    DISK,
    RAM,
    Allocation,
    Workload,
    alternatives,
    first_that_fits,
    levers,
    peak,
)
from qvlm_lightning.models.hub import HubFamily
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.structure import Structure
from qvlm_lightning.quant.scheme import PARTS, Scheme

USABLE = 0.9
"""Share of a device that is planned with; the rest is for its context and the allocator."""


class Plan:
    """Everything that is known before a calibration starts.

    Args:
        family: the model.
        scheme: widths and modes.
        model: without weights, with quantized layers.
        structure: of the model.
        workload: what is asked.
        device_gib: memory of one device, if known.
    """

    def __init__(
        self,
        family: HubFamily,
        scheme: Scheme,
        model: nn.Module,
        structure: Structure,
        workload: Workload,
        device_gib: float | None,
    ) -> None:
        self.family, self.scheme, self.structure = family, scheme, structure
        self.workload, self.device_gib = workload, device_gib
        self.modules = {
            name: x
            for site in structure.sites
            for name, x in site.linears.items()
            if name in structure.quantized
        }
        self.sizes = part_sizes(model, structure)
        self.total = sum(self.sizes.values(), PartSize())
        self.measure: Callable[[Workload], list[Allocation]]
        self.measure = partial(allocations, model, structure)
        self.allocations = self.measure(workload)
        limit = None if device_gib is None else int(device_gib * USABLE * GIB)
        self.fits = None if limit is None else first_that_fits(self.measure, workload, limit)

    # --- for programs -----------------------------------------------------------------------------

    def values(self) -> dict[str, Any]:
        """Return the plan as one object of numbers, strings and flat tables."""
        described = {f"model_{k}": v for k, v in self.family.describe().items()}
        values: dict[str, Any] = {
            **described,
            "scheme": self.scheme.name,
            "activation_mode": self.scheme.activation_mode,
            "group_size": self.scheme.group_size,
            "linears_quantized": len(self.modules),
            "modules_ignored": len(self.structure.ignored),
            "compression_ratio": self.total.full / self.total.quantized,
        }
        for part, size in {"total": self.total, **self.sizes}.items():
            values |= {f"{part}_{name}": value for name, value in vars(size).items()}
            values[f"{part}_quantized"] = size.quantized
        values |= {f"peak_{where}": peak(self.allocations, where) for where in (DEVICE, RAM, DISK)}
        asked = {k: v for k, v in vars(self.workload).items() if k != "method"}
        method = self.workload.method and type(self.workload.method).__name__
        return values | {
            **asked,
            "method": method,
            "device_gib": self.device_gib,
            "fits_with": self.fits and self._parts(self.fits),
            "memory": [vars(a) for a in self.allocations],
            "alternatives": [self._parts(w) | {"peak_device": n} for w, n in self._alternatives()],
            "modules": {name: self._widths(name, x) for name, x in self.modules.items()},
            "ignored": self.structure.ignored,
            "notes": self.structure.notes,
        }

    def _widths(self, name: str, linear: QuantLinear) -> str:
        """Return widths and weight groups of a layer, as in ``w4a4, groups of 128``."""
        kind = self.scheme.widths(self.structure.quantized[name], name).name
        group = linear.weight_quantizer.group_size
        return f"{kind}, groups of {group}" if group else f"{kind}, per channel"

    def _part_widths(self, part: str) -> str:
        """Return the widths of a part, and how many of its layers have others, as in ``w4a4, 3
        others``.
        """
        kind = self.scheme.part(part).name
        mine = [n for n, owner in self.structure.quantized.items() if owner == part]
        others = sum(self.scheme.widths(part, name).name != kind for name in mine)
        return f"{kind}, {others} others" if others else kind

    def _alternatives(self) -> list[tuple[Workload, int]]:
        """Return what gives the same result, with the device's peak."""
        return [(w, peak(self.measure(w), DEVICE)) for w in alternatives(self.workload)]

    @staticmethod
    def _parts(workload: Workload) -> dict[str, int]:
        return {"batch_size": workload.batch_size, "micro_batches": workload.micro_batches}

    # --- for people -------------------------------------------------------------------------------

    def show(self, console: Console, every_module: bool) -> None:
        """Print the plan.

        Args:
            console: where to.
            every_module: whether modules that differ in a number only have a line each.
        """
        described = self.family.describe()
        console.print(f"{described.pop('family')}: {', '.join(map(str, described.values()))}")
        mode = f"activations {self.scheme.activation_mode}"
        console.print(f"scheme {self.scheme.name}, {mode}\n")
        console.print(self._weights())
        console.print(self._modules(every_module))
        console.print(self._ignored(every_module))
        console.print(self._memory())
        for line in self._sentences():
            console.print(line, soft_wrap=True)

    def _weights(self) -> Table:
        table = _table("Weights, GiB", "part", *["widths", "parameters", "now", "codes", "scales"])
        for name in ("ranges", "left", "quantized", "ratio"):
            table.add_column(name, justify="right")
        for part, size in {**self.sizes, "total": self.total}.items():
            if part == "total":
                table.add_section()
            kind = self._part_widths(part) if part in PARTS else ""
            sizes = (size.full, size.codes, size.scales, size.ranges, size.left, size.quantized)
            table.add_row(
                part,
                kind,
                f"{size.parameters / 1e6:,.1f} M",
                *(in_gib(n, 3) for n in sizes),
                f"{size.full / size.quantized:.2f}",
            )
        return table

    def _modules(self, every: bool) -> Table:
        table = _table("Quantized", "module", "layers", "inputs", "outputs", "widths")
        rows = Counter(
            (_kind(name, every), x.in_features, x.out_features, self._widths(name, x))
            for name, x in self.modules.items()
        )
        for (name, inputs, outputs, widths), count in rows.items():
            table.add_row(name, str(count), str(inputs), str(outputs), widths)
        return table

    def _ignored(self, every: bool) -> Table:
        table = _table("Left in full precision", "module", "modules")
        table.add_column("because")
        rows = Counter((_kind(n, every), why) for n, why in self.structure.ignored.items())
        for (name, why), count in rows.items():
            table.add_row(name, str(count), why)
        return table

    def _memory(self) -> Table:
        table = _table("Calibration, per process", "step", "where", "GiB")
        for name in ("what", "formula"):
            table.add_column(name)
        for place in (DEVICE, RAM, DISK):
            for a in (a for a in self.allocations if a.where == place):
                table.add_row(a.step, place, in_gib(a.nbytes), a.what, a.formula)
            if peak(self.allocations, place):
                table.add_section()
                table.add_row("peak", place, in_gib(peak(self.allocations, place)), "", "")
                table.add_section()
        return table

    def _sentences(self) -> list[str]:
        workload = self.workload
        how = "layer by layer" if workload.streaming else "in memory"
        processes = f"{workload.processes} process{'es' * (workload.processes > 1)}"
        ram = in_gib(peak(self.allocations, RAM) * workload.processes, 1)
        lines = [
            "Sizes are those of packed weights; an artifact of this version keeps every weight in "
            f"its own type, {in_gib(self.total.full)} GiB.",
            f"{workload.pairs} pairs of {workload.tokens} tokens ({workload.patches} in the "
            f"tower), batches of {workload.batch_size}, {processes}, {how}; "
            f"{ram} GiB of RAM for all processes.",
        ]
        listed = ", ".join(
            f"{other.micro_batches if other.optimises else other.batch_size}: {in_gib(size)}"
            for other, size in self._alternatives()
        )
        if workload.optimises:
            lines.append(
                f"Device peak by micro_batches, GiB: {listed}. A step of the optimisation is one "
                f"batch of {workload.batch_size}, shared by the processes; in how many parts, "
                "changes nothing."
            )
        else:
            lines.append(
                f"Device peak by batch size, GiB: {listed}. The search sums over pairs: all give "
                "the same result."
            )
        if self.device_gib is not None:
            room = f"{self.device_gib:g} GiB, of which {self.device_gib * USABLE:.1f} are used"
            lines.append(f"A device of {room}: {self._verdict()}.")
        notes = Counter(_kind(note, False) for note in self.structure.notes)
        return lines + [f"note ({count}x): {note}" for note, count in notes.items()]

    def _verdict(self) -> str:
        fits = self.fits
        if fits is None:
            return f"does not fit; {levers(self.workload)}"
        return f"fits with batches of {fits.batch_size}" + (
            f", micro_batches {fits.micro_batches}" if fits.micro_batches > 1 else ""
        )


def _kind(name: str, every: bool) -> str:
    """Return a module's name with the numbers of layers left open."""
    return name if every else re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table

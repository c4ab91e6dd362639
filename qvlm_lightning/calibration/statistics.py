"""One full-precision pass over the calibration set: ranges of every site, and the sample for the
dependency.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from qvlm_lightning.calibration.few_tokens import fill_from_layer
from qvlm_lightning.calibration.sinks import FirstKeysAndValues
from qvlm_lightning.calibration.token_peaks import TokenPeaks, positions
from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.passes import Passes
from qvlm_lightning.forward.samples import Batch, by_sample, rows_and_mask
from qvlm_lightning.nn.distributed import gather_objects, world
from qvlm_lightning.nn.routing import observed
from qvlm_lightning.nn.structure import Site, Structure, Tower, Unit
from qvlm_lightning.progress import Progress
from qvlm_lightning.quant.observers import Granularity, RangeObserver
from qvlm_lightning.quant.tables import RangeTable

_GRANULARITY: dict[int, Granularity] = {0: "tensor", 1: "channel", 2: "position"}


class Statistics:
    """Ranges of the full-precision activations of every site.

    Args:
        structure: the quantized model's structure; its quantizers are off during the pass.
        samples: number of calibration samples.
        seed: seed of the token reservoirs.
    """

    def __init__(self, structure: Structure, samples: int, seed: int) -> None:
        self.structure = structure
        self._ranges: dict[tuple[str, tuple[float, ...]], tuple[Tensor, Tensor]] = {}
        self.observers: dict[str, RangeObserver] = {
            site.name: RangeObserver(self._granularity(site), seed=seed, expected_samples=samples)
            for site in structure.sites
        }
        self.tables: dict[str, RangeTable] = {}
        self.peaks = TokenPeaks()

    @staticmethod
    def _granularity(site: Site) -> Granularity:
        return _GRANULARITY[site.quantizer.low.dim()]

    @torch.no_grad()
    def collect(
        self,
        passes: Passes,
        batches: Sequence[Batch],
        progress: Progress | None = None,
        percentiles: Sequence[float] | None = None,
    ) -> None:
        """Run the full-precision model over the batches; processes share them and merge exactly.

        Args:
            passes: run the model.
            batches: all of them, in every process.
            progress: called as ``progress(what, done, of)``.
            percentiles: if given, a unit's reservoirs are let go as soon as no batch will reach it
                any more, and only these percentiles can be asked for.

        Raises:
            InputError: an activation is NaN or infinite (names the layer).
        """
        rank, size = world()
        mine = {number: batch for number, batch in enumerate(batches) if number % size == rank}
        tower_of = {s.name: name for name, t in self.structure.towers.items() for s in t.sites}
        modules: dict[str, nn.Module] = {s.name: s.leader for s in self.structure.sites}
        failure: str | None = None
        self._ranges.clear()
        sites = {site.name: site for site in self.structure.sites}
        first_tokens = FirstKeysAndValues(self.structure)

        def on_input(number: int, name: str, x: Tensor) -> None:
            first_tokens.update(sites[name], x, mine[number])
            self._see(tower_of[name], sites[name], x, mine[number])

        def on_unit_done(unit: Unit) -> None:
            self._merge(None, unit)
            for site in unit.sites:
                device = site.quantizer.low.device
                table = RangeTable(self.observers.pop(site.name), percentiles or (), device)
                self.tables[site.name] = table

        shown = partial(progress, "statistics") if progress else None
        early = None if percentiles is None else on_unit_done
        try:
            passes.watch(mine, modules, set(), on_input, on_unit_done=early, progress=shown)
        except InputError as error:
            failure = str(error)
        if percentiles is None:
            for tower in self.structure.towers.values():
                for unit in tower.units:  # all at once, the exchange would not fit on a device
                    self._merge(failure, unit)
        elif failure:  # the other processes are at the merge of the same unit
            self._merge(failure, Tower("", []))
        first_tokens.store()

    def _see(self, tower: str, site: Site, x: Tensor, batch: Batch) -> None:
        """Take in the live input of a site in one batch."""
        rows = rows_and_mask(tower, batch)[0]
        x, mask = observed(site.route, *by_sample(tower, x, batch))
        places = positions(batch, site.route) if tower == "language" else None
        try:
            self.observers[site.name].update(x, mask, rows)
            self.peaks.update(site.name, x, mask, rows, places)
        except InputError as error:
            raise InputError(f"calibration activations at {site.name}: {error}") from error

    def _merge(self, failure: str | None, part: Tower | Unit) -> None:
        """Merge over processes; all of them fail together, so that none waits for ever."""
        mine = {site.name: self.observers[site.name].state() for site in part.sites}
        peaks = {site.name: self.peaks.state(site.name) for site in part.sites}
        states = gather_objects((failure, mine, peaks))
        for message, *_ in states:
            if message:
                raise InputError(message)
        for name in mine:
            for _, _, other in states:
                self.peaks.merge(name, other[name])
            merged = RangeObserver.from_state(states[0][1][name])
            for _, other, _ in states[1:]:
                merged.merge(RangeObserver.from_state(other[name]))
            self.observers[name] = merged
        for note in fill_from_layer(part, self.observers):
            if note not in self.structure.notes:
                self.structure.notes.append(note)

    def observed(self, site: Site) -> RangeObserver | RangeTable:
        """Return what is known about a site's activations."""
        return self.tables.get(site.name) or self.observers[site.name]

    def ranges(self, site: Site, percentiles: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return (low, high) candidates of a site, [P, *shape], on the quantizer's device.

        In mode ``dynamic_token`` they are the percentiles themselves: clip ratios on each token's
        absmax.
        """
        device = site.quantizer.low.device
        if site.quantizer.mode == "dynamic_token":
            ratio = torch.tensor(percentiles, dtype=torch.float32, device=device)
            return -ratio, ratio
        key = (site.name, tuple(percentiles))
        if key not in self._ranges:  # a quantile table costs a sort of the whole reservoir
            self._ranges[key] = self.observed(site).ranges(percentiles, device)
        return self._ranges[key]

    def channel_range(self, site: Site) -> tuple[Tensor, Tensor]:
        """Return the exact per-channel range [D] of a site, used for the codes of the
        dependency.
        """
        low, high = self.observed(site).channel_range()
        device = site.quantizer.low.device
        return low.to(device), high.to(device)

    def initialise(self) -> None:
        """Put every quantizer on its min-max range (docs/paper.md, A14)."""
        for site in self.structure.sites:
            low, high = self.ranges(site, [1.0])
            site.quantizer.set_range(low[0], high[0], 1.0)

"""The data flow of a calibration, without Lightning: statistics, partition, search."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from qvlm_lightning.calibration.dependency import dependency_counts
from qvlm_lightning.calibration.search_progress import SearchProgress, decide, search_key
from qvlm_lightning.calibration.state import CalibrationState
from qvlm_lightning.calibration.statistics import Progress, Statistics
from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.passes import Passes, WholeModel
from qvlm_lightning.forward.samples import Batch, with_image_rows
from qvlm_lightning.forward.stream import StreamedModel
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.proxies import Evidence, Proxy
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.block import Block
from qvlm_lightning.nn.distributed import gather_objects, is_main
from qvlm_lightning.nn.replay import UnitInput, run_unit
from qvlm_lightning.nn.structure import Tower
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.entropy import conditional_entropy
from qvlm_lightning.quant.partition import partition_blocks, partition_blocks_dp, resolve_threshold
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.streamed import StreamedWeights

Algorithm = Literal["greedy", "dp"]
_ALGORITHMS: dict[str, Callable[..., list[tuple[int, int]]]] = {
    "greedy": partition_blocks,
    "dp": partition_blocks_dp,
}


class Calibrator:
    """Calibrates the quantizers of one model.

    Args:
        model: full-precision model, frozen, in ``eval()`` mode; its Linear layers are replaced in
            place.
        family: names its parts.
        scheme: widths and modes.
        batches: calibration batches in a fixed order (all of them in every process).
        search_batches: the part of them that the search uses.
        seed: seed of reservoirs and draws.
        progress_folder: where an interrupted search finds its finished blocks; ``None`` keeps
            nothing.
        progress: called as ``progress(what, done, of)``.
        weights: where the weights of a model without any come from, layer by layer; default: the
            model is in memory as a whole.

    Example:
        >>> # calibrator = Calibrator(model, family, Scheme.parse("w4a4"), batches, batches[:2])
        >>> # calibrator.collect(); calibrator.repartition(...); calibrator.search(method)
    """

    def __init__(
        self,
        model: nn.Module,
        family: VLMFamily,
        scheme: Scheme,
        batches: Sequence[Batch],
        search_batches: Sequence[Batch],
        seed: int = 0,
        progress_folder: Path | None = None,
        progress: Progress | None = None,
        weights: StreamedWeights | None = None,
    ) -> None:
        if not batches or not search_batches:
            raise InputError("the calibration set is empty; at least one sample is needed")
        if not any(bool(b["has_image"].any()) for b in search_batches):
            raise InputError(
                "no calibration sample used by the search has an image; at least one is needed"
            )
        self.model, self.family, self.scheme, self.seed = model, family, scheme, seed
        self.batches, self.search_batches = (
            [with_image_rows(family, model, b) for b in some] for some in (batches, search_batches)
        )
        self.passes: Passes
        if weights is None:
            self.fingerprint = family.fingerprint(model)
            self.structure = quantize_model(model, family, scheme)
            self.passes = WholeModel(model, self.structure)
        else:
            self.fingerprint = family.fingerprint(model, weights.sample)
            self.structure = quantize_model(model, family, scheme, weights.device)
            self.passes = StreamedModel(model, self.structure, weights)
        self.state = CalibrationState()
        samples = sum(len(b["sample_index"]) for b in self.batches)
        self.statistics = Statistics(self.structure, samples, seed)
        self.stored = SearchProgress(progress_folder)
        self.progress = progress

    @property
    def device(self) -> torch.device:
        """Where layers run."""
        return self.passes.device

    def collect(self, percentiles: Sequence[float] | None = None) -> None:
        """Collect the full-precision statistics; on a fresh calibration put every range on
        min-max.

        Args:
            percentiles: see :meth:`Statistics.collect`.
        """
        self.statistics.collect(self.passes, self.batches, self.progress, percentiles)
        if not self.state.initialised:
            self.statistics.initialise()
            self.state.initialised = True

    def repartition(
        self,
        towers: Sequence[str],
        proxy: Proxy,
        threshold: str | float = "mean",
        max_depth: int = 3,
        algorithm: Algorithm = "greedy",
        samples: int = 16384,
    ) -> None:
        """Measure the dependency of ``towers`` and cut them into blocks (eq. 4-7).

        Args:
            towers: which ones; towers searched before take part quantized, the tower itself does
                not (A9).
            proxy: what stands for the dependency.
            threshold: ``mean``, ``quantile:q`` or a number.
            max_depth: most units in a block.
            algorithm: ``greedy`` from left to right or ``dp``, the partition of largest excess.
            samples: number of (sample, token, channel) triples.
        """
        for name in towers:
            tower = self.structure.towers[name]
            if not self._comparable(tower):
                self.state.partition[name] = [[i, i] for i in range(len(tower.units))]
                continue
            counts = dependency_counts(
                self.passes,
                self.family,
                self.structure,
                tower,
                self.statistics,
                self.batches,
                quantized=set(self.state.searched),
                samples=samples,
                seed=self.seed,
            )
            joints = {
                kind: c.double() / c.sum(dim=(1, 2), keepdim=True) for kind, c in counts.items()
            }
            with self.structure.only({name}), ExitStack() as held:  # what costly proxies run
                pair = partial(self._pair, tower, proxy=proxy, held=held)
                edges = proxy.edges(Evidence(joints["all"], pair))
            h0 = resolve_threshold(threshold, edges)
            blocks = _ALGORITHMS[algorithm](edges, h0, max_depth)
            self.state.dependency[name] = edges
            self.state.threshold[name] = h0
            self.state.partition[name] = [list(block) for block in blocks]
            self.state.dependency_by_kind[name] = {
                kind: [float(conditional_entropy(j)) for j in joint]
                for kind, joint in joints.items()
                if kind != "all" and not joint.isnan().any()
            }

    @staticmethod
    def _comparable(tower: Tower) -> bool:
        """Whether tokens and channels of neighbouring units correspond and there is an edge at
        all.
        """
        if len(tower.units) < 2 or not all(unit.sites for unit in tower.units):
            return False
        return len({unit.sites[0].leader.in_features for unit in tower.units}) == 1

    def search(self, towers: Sequence[str], method: Method, name: str) -> None:
        """Let ``method`` choose the percentiles of every block of ``towers``, in forward order.

        Args:
            towers: in forward order; earlier ones stay as they are and feed these.
            method: chooses per block.
            name: name of this pass, under which finished blocks are kept.
        """
        decided: list[dict[str, Any]] = []
        for tower in (self.structure.towers[t] for t in towers):
            if tower.sites:
                decided += self._search_tower(tower, method, name)
                self.state.searched = [
                    *(t for t in self.state.searched if t != tower.name),
                    tower.name,
                ]
        spent = ("layer_forwards", "site_forwards", "seconds")
        costs = {what: sum(decision[what] for decision in decided) for what in spent}
        self.state.passes.append({"name": name, "towers": list(towers), **costs})

    @torch.no_grad()
    def _search_tower(self, tower: Tower, method: Method, name: str) -> list[dict[str, Any]]:
        """Return the decision of every block with what it cost, by whichever process it was
        taken.
        """
        earlier = set(self.state.searched) - {tower.name, *self._after(tower)}
        exact, quantized = self.passes.calls(tower, self.search_batches, [set(), earlier])
        blocks = self.state.partition.setdefault(
            tower.name, [[i, i] for i in range(len(tower.units))]
        )
        key = search_key(
            [self.fingerprint, self.scheme.to_dict(), self.seed, [u.name for u in tower.units]],
            blocks,
            method,
            [call.hidden for call in (*exact, *quantized)],
            [b for site in tower.sites for b in self.statistics.ranges(site, method.percentiles)],
        )
        decided = gather_objects(self.stored.read(f"{name}-{tower.name}", key))[0]
        objective = [o for o in self.state.objective if o["tower"] != tower.name]
        with self.structure.only({tower.name}):
            for index, (first, last) in enumerate(blocks):
                units = tower.units[first : last + 1]
                with self.passes.held(units):
                    started = time.perf_counter()
                    block = self._block(tower, first, last, exact, quantized, method.percentiles)
                    if index >= len(decided):
                        decided.append(decide(block, method, started))
                        if is_main():
                            self.stored.write(f"{name}-{tower.name}", key, decided)
                    self._commit(block, decided[index]["choice"])
                    place = {"tower": tower.name, "first": first, "last": last}
                    objective.append(place | decided[index]["objective"])
                    targets = map(self.passes.keep, block.targets)
                    exact = [c.advanced(t) for c, t in zip(exact, targets, strict=True)]
                    for unit in units:
                        quantized = [c.advanced(run_unit(unit, c.hidden, c)) for c in quantized]
                quantized = [c.advanced(self.passes.keep(c.hidden)) for c in quantized]
                if self.progress:
                    self.progress(f"search {tower.name}", index + 1, len(blocks))
        self.state.objective = objective
        return decided

    def _commit(self, block: Block, choice: Sequence[int]) -> None:
        tables = [table for unit in block.tables for table in unit]
        for site, index, (low, high) in zip(block.sites, choice, tables, strict=True):
            percentile = block.percentiles[index]
            site.quantizer.set_range(low[index], high[index], percentile)
            self.state.percentiles[site.name] = percentile

    def _block(
        self,
        tower: Tower,
        first: int,
        last: int,
        exact: list[UnitInput],
        quantized: list[UnitInput],
        percentiles: list[float],
    ) -> Block:
        """Return the block with its full-precision targets."""
        units = tower.units[first : last + 1]
        tables = [
            [self.statistics.ranges(site, percentiles) for site in unit.sites] for unit in units
        ]
        block = Block(units, exact, quantized, [], percentiles, tables)
        hidden = [call.hidden for call in exact]
        for index in range(len(units)):
            hidden = block.advance_full_precision(hidden, index)
        block.targets = hidden
        return block

    @torch.no_grad()
    def _pair(self, tower: Tower, edge: int, proxy: Proxy, held: ExitStack) -> Block:
        """Return the block of two neighbouring units for costly proxies: as for the entropy, the
        tower runs in full precision up to the pair, what comes before it as it stands.

        The pair can be run until ``held`` is closed or given to the next one.
        """
        held.close()
        exact = self._calls(tower, set(self.state.searched) - {tower.name, *self._after(tower)})
        for unit in tower.units[:edge]:
            with self.structure.only(set()), self.passes.held([unit]):
                exact = [c.advanced(run_unit(unit, c.hidden, c)) for c in exact]
        held.enter_context(self.passes.held(tower.units[edge : edge + 2]))
        search = getattr(proxy, "search", None)
        percentiles = search.percentiles if search is not None else [1.0]
        return self._block(tower, edge, edge + 1, exact, exact, percentiles)

    def _calls(self, tower: Tower, quantized: set[str]) -> list[UnitInput]:
        """Return per search batch the call of the tower's first unit, with ``quantized`` towers
        before it.
        """
        return self.passes.calls(tower, self.search_batches, [quantized])[0]

    def _after(self, tower: Tower) -> list[str]:
        names = list(self.structure.towers)
        return names[names.index(tower.name) + 1 :]

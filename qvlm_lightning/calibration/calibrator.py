"""The data flow of a calibration, without Lightning: statistics, partition, search."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from qvlm_lightning.calibration.block_search import BlockSearch
from qvlm_lightning.calibration.decisions import Decisions
from qvlm_lightning.calibration.dependency import dependency_counts
from qvlm_lightning.calibration.massive import warning_lines
from qvlm_lightning.calibration.sinks import SinkSearch
from qvlm_lightning.calibration.state import CalibrationState
from qvlm_lightning.calibration.statistics import Statistics
from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.passes import Passes, WholeModel
from qvlm_lightning.forward.samples import Batch, with_image_rows, with_sinks
from qvlm_lightning.forward.stream import StreamedModel
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.proxies import Evidence, Proxy
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.distributed import barrier, is_main
from qvlm_lightning.nn.finite import check_bounds
from qvlm_lightning.nn.parameters import Parameters
from qvlm_lightning.nn.replay import run_unit
from qvlm_lightning.nn.structure import Tower
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.progress import Progress, say
from qvlm_lightning.quant.entropy import conditional_entropy
from qvlm_lightning.quant.partition import (
    fixed_blocks,
    partition_blocks,
    partition_blocks_dp,
    resolve_threshold,
    shuffled_blocks,
)
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights.prepared import PreparedFile, StreamedParameters
from qvlm_lightning.weights.streamed import StreamedWeights

Algorithm = Literal["greedy", "dp", "fixed", "shuffled"]


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
        progress: called as ``progress(what, done, of, note)``.
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
            stored = family.stored_types(model)
            self.structure = quantize_model(model, family, scheme)
            self.passes = WholeModel(model, self.structure)
        else:
            self.fingerprint = family.fingerprint(model, weights.sample)
            stored = weights.stored_types()
            self.structure = quantize_model(model, family, scheme, weights.device)
            self.passes = StreamedModel(model, self.structure, weights)
        self.structure.stored = stored
        self.sink_search = (
            SinkSearch(self.structure, family, self.batches) if self.structure.sinks else None
        )
        self.state = CalibrationState()
        samples = sum(len(b["sample_index"]) for b in self.batches)
        self.statistics = Statistics(self.structure, samples, seed)
        self.progress = progress
        self.prepared: PreparedFile | None = None
        self.blocks = BlockSearch(
            self.passes,
            (self.batches, self.search_batches),
            family,
            self.statistics,
            self.state,
            Decisions(progress_folder),
            progress,
        )

    @property
    def device(self) -> torch.device:
        """Where layers run."""
        return self.passes.device

    def prepare(self, method: Method) -> None:
        """Let a method change the model before anything is measured (:meth:`Method.prepare`).

        Raises:
            InputError: the model cannot be prepared, or the disk has no room for the changed
                weights of a streamed one.
        """
        passes, stored, folder = self.passes, self.structure.stored, self.blocks.decisions.folder
        if not isinstance(passes, StreamedModel):
            method.prepare(Parameters(self.model, stored), self.family, self.structure)
            return
        parameters = StreamedParameters(self.model, stored, passes.weights)
        method.prepare(parameters, self.family, self.structure)
        if passes.weights.makers and folder is not None:
            identity = [self.fingerprint, self.scheme.identity(), method.settings()]
            path = folder / "prepared.safetensors"
            self.prepared = PreparedFile(path, passes.weights, stored, identity)
            self.prepared.check_space()

    def finish(self) -> None:
        """Remove the file of prepared weights, which only a run needs that goes on."""
        if self.prepared is None:
            return
        self.prepared.close()
        barrier()
        if is_main():
            self.prepared.remove()

    def collect(self, percentiles: Sequence[float] | None = None) -> None:
        """Write the prepared weights of a streamed model, find the sink tokens and collect the
        full-precision statistics; on a fresh calibration put every range on min-max. Says which
        sites have tokens that one range does not fit.

        Args:
            percentiles: see :meth:`Statistics.collect`.

        Raises:
            InputError: an activation is NaN or infinite, or a range that a checkpoint restored is.
        """
        if self.prepared is not None:
            if is_main():
                self.prepared.write(self.progress)
            barrier()
            self.prepared.open()
        if self.sink_search and not self.sink_search.sinks.found:
            self.sink_search.find(self.passes, self.search_batches, self.progress)
            for batches in (self.batches, self.search_batches):
                batches[:] = [with_sinks(self.structure.sinks, b) for b in batches]
            if is_main():
                say(self.sink_search.sinks.describe())
        self.statistics.collect(self.passes, self.batches, self.progress, percentiles)
        if is_main():
            for line in warning_lines(self.structure, self.scheme, self.statistics.peaks):
                say(line)
        if not self.state.initialised:
            self.statistics.initialise()
            self.state.initialised = True
        check_bounds(self.model, "the calibration")

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
                not (docs/paper.md, A9).
            proxy: what stands for the dependency.
            threshold: ``mean``, ``quantile:q`` or a number.
            max_depth: most units in a block.
            algorithm: ``greedy`` from left to right, or ``dp``, the partition of largest excess;
                controls that ignore the dependency: ``fixed``, blocks of ``max_depth``, and
                ``shuffled``, the blocks of ``greedy`` in a random order.
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
                pair = partial(self.pair, tower, held)
                edges = proxy.edges(Evidence(joints["all"], pair))
            h0 = resolve_threshold(threshold, edges)
            blocks = self._blocks(algorithm, edges, h0, max_depth)
            self.state.dependency[name] = edges
            self.state.threshold[name] = h0
            self.state.partition[name] = [list(block) for block in blocks]
            self.state.dependency_by_kind[name] = {
                kind: [float(conditional_entropy(j)) for j in joint]
                for kind, joint in joints.items()
                if kind != "all" and not joint.isnan().any()
            }

    def _blocks(
        self, algorithm: Algorithm, edges: list[float], threshold: float, max_depth: int
    ) -> list[tuple[int, int]]:
        """Return the blocks of a tower that ``algorithm`` cuts."""
        if algorithm == "dp":
            return partition_blocks_dp(edges, threshold, max_depth)
        if algorithm == "fixed":
            return fixed_blocks(len(edges) + 1, max_depth)
        blocks = partition_blocks(edges, threshold, max_depth)
        return blocks if algorithm == "greedy" else shuffled_blocks(blocks, self.seed)

    @staticmethod
    def _comparable(tower: Tower) -> bool:
        """Whether tokens and channels of neighbouring units correspond and there is an edge at
        all.
        """
        if len(tower.units) < 2 or not all(unit.sites for unit in tower.units):
            return False
        return len({unit.sites[0].leader.in_features for unit in tower.units}) == 1

    def search(self, towers: Sequence[str], method: Method, name: str) -> None:
        """Let ``method`` decide every block of ``towers``, in forward order.

        Args:
            towers: in forward order; earlier ones stay as they are and feed these.
            method: decides per block.
            name: name of this pass, under which finished blocks are kept.
        """
        self.blocks.search(
            towers, method, name, [self.fingerprint, self.scheme.identity(), self.seed]
        )

    def restore_changes(self) -> None:
        """Put the changed weights that ``state.changed`` names into the model.

        Raises:
            InputError: the file of a decision is missing or broken.
        """
        self.blocks.restore_changes()

    @torch.no_grad()
    def pair(self, tower: Tower, held: ExitStack, edge: int, method: Method) -> Block:
        """Return the block of two neighbouring units for costly proxies: as for the entropy, the
        tower runs in full precision up to the pair, what comes before it as it stands.

        Args:
            tower: the tower.
            held: the pair can be run until it is closed or given to the next pair.
            edge: place of the first unit.
            method: what will run on the pair.
        """
        held.close()
        earlier = self.blocks.quantized_before(tower)
        exact = self.passes.calls(tower, self.search_batches, [earlier])[0]
        for unit in tower.units[:edge]:
            with self.structure.only(set()), self.passes.held([unit]):
                exact = [c.advanced(run_unit(unit, c.hidden, c)) for c in exact]
        held.enter_context(self.passes.held(tower.units[edge : edge + 2]))
        return self.blocks.block(tower, edge, edge + 1, exact, exact, method)

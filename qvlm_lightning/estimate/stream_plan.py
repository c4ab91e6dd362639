"""Plan of a streamed calibration: what is held where, and how long it should take."""

from typing import TYPE_CHECKING, Any

from qvlm_lightning.estimate.cost import expected_layer_forwards
from qvlm_lightning.estimate.memory import MemoryFormulas
from qvlm_lightning.estimate.sizes import ModelSizes, format_bytes
from qvlm_lightning.estimate.workload import token_count, workload_of
from qvlm_lightning.methods.base import Method
from qvlm_lightning.nn.distributed import world
from qvlm_lightning.progress import say

if TYPE_CHECKING:
    from qvlm_lightning.forward.stream import StreamedModel


class StreamPlan:
    """Sizes known before work starts; times as soon as the first decoder layer has been run.

    Args:
        calibrator: holds batches and structure.
        passes: holds the weights' places.
        depth: most layers in a block.
        dependency: whether the dependency is measured.
        method: what searches; ``None`` for nothing.
        epochs: of the visual-encoder optimisation.
        micro_batches: parts of its steps.
    """

    def __init__(
        self,
        calibrator: Any,
        passes: "StreamedModel",
        depth: int,
        dependency: bool,
        method: Method | None,
        epochs: int = 0,
        micro_batches: int = 1,
    ) -> None:
        self.passes, self.dependency = passes, dependency
        self.epochs, self.steps = epochs, epochs * len(calibrator.batches)
        # forwards and backwards; in parts, each of them also forwards for the sums of the others
        self.reads = 2 if micro_batches == 1 else 3 * micro_batches
        self.parts = micro_batches
        self.tokens = token_count(calibrator.batches)
        self.search_tokens = token_count(calibrator.search_batches)
        self.sizes = ModelSizes(calibrator.model, calibrator.structure)
        self.workload = workload_of(
            calibrator,
            method,
            depth,
            processes=world()[1],
            optimises=epochs > 0,
            streaming=True,
            spills=passes.spill is not None,
            micro_batches=micro_batches,
        )
        self.allocations = MemoryFormulas(self.sizes, self.workload).allocations()

    def lines(self) -> list[str]:
        """Return what is held where, a sentence per line; sizes are those of ``qvlm plan``."""
        sizes, device = self.sizes, self.passes.device
        files = {entry.file for entry in self.passes.weights.shards.entries.values()}
        total, depth = format_bytes(sizes.total), self.workload.depth
        block = format_bytes(sizes.largest_block(depth, sizes.unit))
        where = "in mapped files" if self.workload.spills else "in RAM"
        lines = [
            f"streaming {total} of weights from {len(files)} file(s), never all in memory",
            f"on {device}: a block of up to {depth} layers, {block}; before a tower "
            f"{format_bytes(sizes.rest)} of embeddings",
            f"{where}: hidden states of {self.tokens:,} tokens and what earlier towers gave, "
            f"{self._held('statistics', 'hidden states')}",
            "in RAM: the sampled activations of one layer, up to "
            f"{self._held('statistics', 'reservoirs')}",
            f"reads: {' + '.join(self._sweeps())}, each {total} or less",
        ]
        if self.workload.method is not None:
            lines[2:2] = [
                f"on {device}, for the search: {self._held('search', 'quantized weights')} of "
                f"quantized weights, {self._held('search', 'hidden states')} of hidden states of "
                f"{self.search_tokens:,} tokens"
            ]
        if self.steps:
            lines.append(
                f"optimisation: {self.steps} steps, each of {self.reads} reads; on {device}, what "
                "each layer was given waits for the way back, "
                f"{self._held('optimisation', 'saved for backward')}; every measurement of the "
                f"loss is {self.steps // self.epochs * self.parts} reads"
            )
        return lines

    def timed(self, tower: str, reading: float, running: float) -> None:
        """Say how long it should take, once the decoder's turn has come.

        Args:
            tower: whose layer was timed.
            reading: seconds to read it.
            running: seconds to run all calibration pairs through it.
        """
        if tower == "language":
            say(self.estimate(reading, running))

    def estimate(self, reading: float, running: float) -> str:
        """Return how long the calibration should take, in words, from one timed decoder layer.

        Args:
            reading: seconds to read it.
            running: seconds to run all calibration pairs through it.
        """
        units, depth = self.sizes.language.units, self.workload.depth
        sweeps = (2 if self.dependency else 1) * len(units) * (reading + running)
        search = 0.0
        if self.workload.method is not None:
            once = running * self.search_tokens / self.tokens
            for first in range(0, len(units), depth):
                sites = [len(unit.sites) for unit in units[first : first + depth]]
                forwards = expected_layer_forwards(self.workload.method, sites)
                search += len(sites) * reading + once * forwards
        text = (
            f"one of {len(units)} decoder layers: {reading:.1f} s to read, {running:.1f} s for all "
            f"calibration pairs; in all about {_time(sweeps)} for statistics and dependency and, "
            f"with blocks of {depth}, {_time(search)} for the search"
        )
        if not self.steps:
            return text
        # targets forwards; in every step the layer runs, again, and backwards (twice as long), and
        # in parts once more; the Jacobian weights of an epoch take about a step
        step = 4 if self.reads == 2 else 5
        batches = self.steps // self.epochs
        runs = 1 + self.epochs * step * (1 + 1 / batches)
        reads = batches + (self.steps + self.epochs) * self.reads
        tuning = len(units) * (reads * reading + runs * running)
        return f"{text}, at least {_time(tuning)} for the optimisation"

    def _held(self, step: str, what: str) -> str:
        held = [a.nbytes for a in self.allocations if (a.step, a.what) == (step, what)]
        return format_bytes(sum(held))

    def _sweeps(self) -> list[str]:
        sweeps = ["statistics", "dependency (per tower, up to it)", "search", "artifact"]
        return sweeps if self.dependency else [sweeps[0], *sweeps[2:]]


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"

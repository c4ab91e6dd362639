"""What a streamed calibration holds where, and how long it should take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qvlm_lightning.estimate.memory import RESERVOIR
from qvlm_lightning.forward.samples import Batch
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.cost import expected_layer_forwards
from qvlm_lightning.nn.structure import Tower, Unit
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
        self.passes, self.depth = passes, depth
        self.dependency, self.method = dependency, method
        self.towers = list(calibrator.structure.towers.values())
        self.epochs, self.steps = epochs, epochs * len(calibrator.batches)
        # forwards and backwards; in parts, each of them also forwards for the sums of the others
        self.reads = 2 if micro_batches == 1 else 3 * micro_batches
        self.tokens = _tokens(calibrator.batches)
        self.search_tokens = _tokens(calibrator.search_batches)

    def lines(self) -> list[str]:
        """Return what is held where, a sentence per line."""
        weights, passes = self.passes.weights, self.passes
        places = {(e.file, e.start): name for name, e in weights.shards.entries.items()}
        total = weights.nbytes(name for name in places.values() if name in weights.dtypes)
        files = {file for file, _ in places}
        block = max(self._block(tower) for tower in self.towers)
        language = next(tower for tower in self.towers if tower.name == "language")
        hidden = self._hidden(language)
        searched = hidden * self.search_tokens // self.tokens
        reservoir = max(map(self._reservoir, language.units))
        where = "in mapped files" if passes.spill else "in RAM"
        lines = [
            f"streaming {_size(total)} of weights from {len(files)} file(s), never all in memory",
            f"on {passes.device}: a block of up to {self.depth} layers, {_size(block)}, and as "
            f"much again for its quantized weights; before a tower {_size(self._rest())} of "
            "embeddings",
            f"{where}: hidden states of {self.tokens:,} tokens, {_size(2 * hidden)} (in and out of "
            f"a layer); for the search, three times {_size(searched)}",
            f"in RAM: the sampled activations of one layer, up to {_size(reservoir)}",
            f"reads: {' + '.join(self._sweeps())}, each {_size(total)} or less",
        ]
        if self.steps:
            lines.append(
                f"optimisation: {self.steps} steps, each of {self.reads} reads; on "
                f"{passes.device}, what each layer was given waits for the way back"
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
        """Return how long the calibration should take, from one timed decoder layer."""
        units = [u for t in self.towers if t.name == "language" for u in t.units]
        sweeps = (2 if self.dependency else 1) * len(units) * (reading + running)
        search = 0.0
        if self.method is not None:
            once = running * self.search_tokens / self.tokens
            for first in range(0, len(units), self.depth):
                sites = [len(unit.sites) for unit in units[first : first + self.depth]]
                search += len(sites) * reading + once * expected_layer_forwards(self.method, sites)
        said = (
            f"one of {len(units)} decoder layers: {reading:.1f} s to read, {running:.1f} s for all "
            f"calibration pairs; in all about {_time(sweeps)} for statistics and dependency and, "
            f"with blocks of {self.depth}, {_time(search)} for the search"
        )
        if not self.steps:
            return said
        # targets forwards; in every step the layer runs, again, and backwards (twice as long), and
        # in parts once more; the Jacobian weights of an epoch take about a step
        step = 4 if self.reads == 2 else 5
        batches = self.steps // self.epochs
        runs = 1 + self.epochs * step * (1 + 1 / batches)
        reads = batches + (self.steps + self.epochs) * self.reads
        tuning = len(units) * (reads * reading + runs * running)
        return f"{said}, at least {_time(tuning)} for the optimisation"

    def _sweeps(self) -> list[str]:
        sweeps = ["statistics", "dependency (per tower, up to it)", "search", "artifact"]
        return sweeps if self.dependency else [sweeps[0], *sweeps[2:]]

    def _bytes(self, unit: Unit) -> int:
        return self.passes.weights.nbytes(self.passes.of_unit[unit.name])

    def _block(self, tower: Tower) -> int:
        sizes = list(map(self._bytes, tower.units))
        return max((sum(sizes[i : i + self.depth]) for i in range(len(sizes))), default=0)

    def _rest(self) -> int:
        return self.passes.weights.nbytes(self.passes.rest)

    def _hidden(self, tower: Tower) -> int:
        """Return the bytes of the tower's hidden states of all calibration tokens."""
        leader = next((site.leader for site in tower.sites), None)
        return 0 if leader is None else self.tokens * leader.in_features * leader.weight.itemsize

    def _reservoir(self, unit: Unit) -> int:
        kept = min(RESERVOIR, self.tokens)
        return sum(4 * kept * site.leader.in_features for site in unit.sites)


def _tokens(batches: Sequence[Batch]) -> int:
    return sum(batch["attention_mask"].numel() for batch in batches)


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"

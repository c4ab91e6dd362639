"""Memory held by a calibration, by formulas: what for, where, how much.

Peaks of one process. Left out are the framework itself (a CUDA context, the allocator's slack,
imported libraries), attention's own buffers, masks and positions. Experts count as if every token
came to each of them.

Letters: ``e`` bytes of a weight, ``D`` width of a layer, ``F`` its widest Linear input, ``I`` and
``O`` the summed inputs of its sites and outputs of its Linear layers, ``B`` pairs of a batch, ``T``
tokens of a pair (in the tower: patches), ``C`` candidates evaluated at once, ``N`` calibration
pairs, ``S`` pairs of the search, ``L`` layers of a block, ``V`` vocabulary.
"""

from collections.abc import Callable

from torch import nn

from qvlm_lightning.estimate.sizes import ModelSizes
from qvlm_lightning.estimate.workload import DEVICE, DISK, RAM, Allocation, Workload
from qvlm_lightning.nn.structure import Structure, Tower, Unit


def allocations(model: nn.Module, structure: Structure, workload: Workload) -> list[Allocation]:
    """Return everything a process holds at the peak of each step.

    Args:
        model: with quantized layers, with or without weights.
        structure: of the model.
        workload: what is asked.
    """
    return MemoryFormulas(ModelSizes(model, structure), workload).allocations()


class MemoryFormulas:
    """What a workload holds of a model, step by step.

    Args:
        sizes: of the model.
        workload: what is asked.
    """

    def __init__(self, sizes: ModelSizes, workload: Workload) -> None:
        self.sizes, self.workload, self.towers = sizes, workload, sizes.towers

    def allocations(self) -> list[Allocation]:
        """Return what is held at the peak of each step that takes place."""
        every = self._loading() + self._statistics()
        if self.workload.method is not None:
            every += self._search()
        if self.workload.optimises:
            every += self._optimisation()
        return [a for a in every if a.nbytes]

    def _loading(self) -> list[Allocation]:
        """The model on its way to the device."""
        whole = 0 if self.workload.streaming else self.sizes.total
        return [Allocation("loading", "weights", RAM, whole, "all parameters, in every process")]

    def _statistics(self) -> list[Allocation]:
        """Full-precision pass over all pairs."""
        workload, step = self.workload, "statistics"
        one = self._most(lambda t, u: self.sizes.running(u, self._batch(t), quantized=False))
        largest = self._most(self._reservoir)
        sorting = self._most(lambda t, u: self.sizes.quantiles(u, self._tokens(t, workload.pairs)))
        exchange = 0 if workload.processes == 1 else largest + largest // workload.processes
        every = [
            *self._weights(step, layers=1, quantized=False),
            Allocation(step, "one layer", DEVICE, one, "B T (4 D e + F e)"),
            Allocation(step, "quantiles", DEVICE, sorting, "20 F min(8192, N T) of one site"),
            Allocation(
                step, "exchange", DEVICE, exchange, "reservoirs of a layer, between processes"
            ),
        ]
        if workload.streaming:
            formula = "4 I min(8192, N T) of one layer"
            return [
                *every,
                self._waiting(step),
                Allocation(step, "reservoirs", RAM, largest, formula),
            ]
        logits = workload.batch_size * workload.tokens * self.sizes.vocabulary * self.sizes.element
        return [
            *every,
            Allocation(step, "logits", DEVICE, logits, "B T V e"),
            self._reservoirs(step),
        ]

    def _search(self) -> list[Allocation]:
        """Search of the blocks; the tower whose sum is largest."""
        workload, step = self.workload, "search"
        pairs, count = workload.search_pairs, workload.candidates
        chains = self._most(lambda t, u: self._hidden(t, pairs))
        inputs = self._most(lambda t, u: self.sizes.site_inputs(u, self._tokens(t, pairs)))
        stacked = self._most(lambda t, u: self.sizes.running(u, count * self._batch(t), True))
        device = {
            "hidden states": (4 * chains, "4 S T D e: both chains, targets, next"),
            "site inputs": (inputs, "S T (I + F) e of one layer"),
            "candidates": (stacked, "C B T (4 D e + F (e + 8)) in one layer"),
        }
        every = [
            *self._weights(step, layers=workload.depth, quantized=True),
            *(Allocation(step, what, DEVICE, n, formula) for what, (n, formula) in device.items()),
        ]
        return every if workload.streaming else [*every, self._reservoirs(step)]

    def _optimisation(self) -> list[Allocation]:
        """A step of visual-encoder optimisation: forward and backward through the whole model."""
        workload, step, sizes = self.workload, "optimisation", self.sizes
        mine = -(-workload.batch_size // (workload.processes * workload.micro_batches))
        each = [self._saved(t, u, mine) for t in self.towers for u in t.units]
        saved, formula = sum(each), "b T ((I + O) e + 8 D), all layers"
        if workload.activation_checkpointing or workload.streaming:
            inputs = sum(2 * self._hidden(t, mine) * len(t.units) for t in self.towers)
            saved, formula = max(each) + inputs, "one layer's, and 2 b T D e of each other"
        targets = self._hidden(sizes.language, -(-workload.pairs // workload.processes))
        logits = mine * workload.tokens * sizes.vocabulary * (sizes.element + 8)
        every = [
            *self._weights(step, layers=1, quantized=True),
            Allocation(step, "saved for backward", DEVICE, saved, formula),
            Allocation(step, "targets", DEVICE, targets, "N T D e / processes"),
            Allocation(step, "logits", DEVICE, logits, "b T V (e + 8)"),
        ]
        if workload.streaming:
            ends = sizes.rest + sizes.head
            return [*every, Allocation(step, "embeddings, head", DEVICE, ends, "during a pass")]
        return [*every, self._reservoirs(step)]

    def _weights(self, step: str, layers: int, quantized: bool) -> list[Allocation]:
        workload, sizes = self.workload, self.sizes
        kept, formula = 0, "e per quantized weight of the block"
        if quantized:
            kept = sizes.largest_block(layers, sizes.quantized)
        if workload.streaming:
            largest = max(sizes.largest_block(layers, sizes.unit), sizes.rest)
            return [
                Allocation(step, "weights", DEVICE, largest, "one block, or embeddings"),
                Allocation(step, "quantized weights", DEVICE, kept, formula),
            ]
        if quantized and workload.optimises and not workload.activation_checkpointing:
            kept = sum(sizes.quantized(u) for t in self.towers for u in t.units)
            formula = "e per quantized weight, kept"
        elif quantized:
            earlier = (t for t in self.towers if t is not sizes.language)
            kept += sum(sizes.quantized(u) for t in earlier for u in t.units)
            formula = "e per quantized weight of tower and block"
        return [
            Allocation(step, "weights", DEVICE, sizes.total, "all parameters"),
            Allocation(step, "quantized weights", DEVICE, kept, formula),
        ]

    def _waiting(self, step: str) -> Allocation:
        nbytes = self._hidden(self.sizes.language, self.workload.pairs)
        for tower in (t for t in self.towers if t is not self.sizes.language and t.sites):
            nbytes += self.sizes.output(tower, self._tokens(tower, self.workload.pairs))
        where = DISK if self.workload.spills else RAM
        formula = "N T D e, and what earlier towers gave"
        return Allocation(step, "hidden states", where, nbytes, formula)

    def _reservoirs(self, step: str) -> Allocation:
        every = sum(self._reservoir(t, u) for t in self.towers for u in t.units)
        return Allocation(step, "reservoirs", RAM, every, "4 I min(8192, N T) of all layers")

    def _saved(self, tower: Tower, unit: Unit, pairs: int) -> int:
        # weights learn their clipping in the towers: their quantized inputs are kept as well
        twice = tower is not self.sizes.language
        return self.sizes.saved_for_backward(unit, self._tokens(tower, pairs), twice)

    def _hidden(self, tower: Tower, pairs: int) -> int:
        return self.sizes.hidden(tower, self._tokens(tower, pairs))

    def _reservoir(self, tower: Tower, unit: Unit) -> int:
        return self.sizes.reservoir(unit, self._tokens(tower, self.workload.pairs))

    def _batch(self, tower: Tower) -> int:
        return self._tokens(tower, self.workload.batch_size)

    def _tokens(self, tower: Tower, pairs: int) -> int:
        return pairs * self.workload.tokens_of(tower.name)

    def _most(self, size: Callable[[Tower, Unit], int]) -> int:
        return max(size(tower, unit) for tower in self.towers for unit in tower.units)

"""What a calibration will hold in memory, by formulas: which things, where, how large.

Peaks of one process. Left out are the framework itself (a CUDA context, the allocator's slack,
imported libraries), attention's own buffers, masks and positions. Experts count as if every token
came to each of them.

Letters: ``e`` bytes of a weight, ``D`` width of a layer, ``F`` its widest Linear input, ``I`` and
``O`` the summed inputs of its sites and outputs of its Linear layers, ``B`` pairs of a batch, ``T``
tokens of a pair (in the tower: patches), ``C`` candidates evaluated at once, ``N`` calibration
pairs, ``S`` pairs of the search, ``L`` layers of a block, ``V`` vocabulary.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from qvlm_lightning.estimate.sizes import OFF
from qvlm_lightning.estimate.workload import DEVICE, DISK, RAM, Held, Work
from qvlm_lightning.nn.structure import Structure, Tower, Unit
from qvlm_lightning.quant.observers import RangeObserver

RESERVOIR = RangeObserver("tensor").max_tokens


def memory(model: nn.Module, structure: Structure, work: Work) -> list[Held]:
    """Return everything a process holds at the peak of each step.

    Args:
        model: with quantized layers, with or without weights.
        structure: of the model.
        work: what is asked.
    """
    sizes = _Sizes(model, structure, work)
    held = sizes.loading() + sizes.statistics()
    if work.method is not None:
        held += sizes.search()
    if work.optimises:
        held += sizes.optimisation()
    return [h for h in held if h.nbytes]


class _Sizes:
    """The formulas."""

    def __init__(self, model: Any, structure: Structure, work: Work) -> None:
        self.work, self.towers = work, [t for t in structure.towers.values() if t.units]
        self.total = _bytes(model)
        self.vocabulary = model.get_output_embeddings()
        inside = sum(_bytes(u.module) for t in self.towers for u in t.units)
        everywhere = model.named_parameters(remove_duplicate=False)
        tied = sum(p is self.vocabulary.weight for _, p in everywhere) > 1
        self.head = 0 if tied else _bytes(self.vocabulary)
        self.rest = self.total - inside - self.head
        self.language = structure.towers["language"]
        self.element = self.vocabulary.weight.itemsize

    def loading(self) -> list[Held]:
        """The model on its way to the device."""
        whole = 0 if self.work.streaming else self.total
        return [Held("loading", "weights", RAM, whole, "all parameters, in every process")]

    def statistics(self) -> list[Held]:
        """Full-precision pass over all pairs."""
        work, step = self.work, "statistics"
        one = _most(self.towers, lambda t, u: self._layer(t, u, 1, quantized=False))
        largest = _most(self.towers, self._reservoir)
        wire = 0 if work.processes == 1 else largest + largest // work.processes
        held = [
            *self._weights(step, layers=1, quantized=False),
            Held(step, "one layer", DEVICE, one, "B T (4 D e + F e)"),
            Held(step, "exchange", DEVICE, wire, "reservoirs of a layer, between processes"),
        ]
        if work.streaming:
            return [
                *held,
                self._waiting(step),
                Held(step, "reservoirs", RAM, largest, "4 I min(8192, N T) of one layer"),
            ]
        logits = self._logits() * self.element
        return [*held, Held(step, "logits", DEVICE, logits, "B T V e"), self._reservoirs(step)]

    def search(self) -> list[Held]:
        """Search of the blocks; the tower whose sum is largest."""
        work, step = self.work, "search"
        chains = _most(self.towers, lambda t, u: self._hidden(t, work.search_pairs))
        inputs = _most(self.towers, lambda t, u: self._inputs(t, u, work.search_pairs))
        stacked = _most(self.towers, lambda t, u: self._layer(t, u, work.candidates, True))
        held = [
            *self._weights(step, layers=work.depth, quantized=True),
            Held(
                step, "hidden states", DEVICE, 4 * chains, "4 S T D e: both chains, targets, next"
            ),
            Held(step, "site inputs", DEVICE, inputs, "S T (I + F) e of one layer"),
            Held(step, "candidates", DEVICE, stacked, "C B T (4 D e + F (e + 8)) in one layer"),
        ]
        return held if work.streaming else [*held, self._reservoirs(step)]

    def optimisation(self) -> list[Held]:
        """A step of visual-encoder optimisation: forward and backward through the whole model."""
        work, step = self.work, "optimisation"
        mine = -(-work.batch_size // (work.processes * work.micro_batches))
        each = [mine * self._saved(t, u) for t in self.towers for u in t.units]
        saved, formula = sum(each), "b T ((I + O) e + 8 D), all layers"
        if work.activation_checkpointing or work.streaming:
            inputs = sum(2 * self._hidden(t, mine) * len(t.units) for t in self.towers)
            saved, formula = max(each) + inputs, "one layer's, and 2 b T D e of each other"
        targets = self._hidden(self.language, -(-work.pairs // work.processes))
        logits = mine * work.tokens * int(self.vocabulary.out_features) * (self.element + 8)
        held = [
            *self._weights(step, layers=1, quantized=True),
            Held(step, "saved for backward", DEVICE, saved, formula),
            Held(step, "targets", DEVICE, targets, "N T D e / processes"),
            Held(step, "logits", DEVICE, logits, "b T V (e + 8)"),
        ]
        if work.streaming:
            ends = self.rest + self.head
            return [*held, Held(step, "embeddings, head", DEVICE, ends, "during a pass")]
        return [*held, self._reservoirs(step)]

    def _weights(self, step: str, layers: int, quantized: bool) -> list[Held]:
        work = self.work
        blocks = [self._block(t, layers, _quantized) for t in self.towers]
        kept, formula = max(blocks) if quantized else 0, "e per quantized weight of the block"
        if work.streaming:
            block = max(self._block(t, layers, lambda u: _bytes(u.module)) for t in self.towers)
            held = Held(step, "weights", DEVICE, max(block, self.rest), "one block, or embeddings")
            return [held, Held(step, "quantized weights", DEVICE, kept, formula)]
        if quantized and work.optimises and not work.activation_checkpointing:
            kept = sum(_quantized(u) for t in self.towers for u in t.units)
            formula = "e per quantized weight, kept"
        elif quantized:
            earlier = (t for t in self.towers if t is not self.language)
            kept += sum(_quantized(u) for t in earlier for u in t.units)
            formula = "e per quantized weight of tower and block"
        return [
            Held(step, "weights", DEVICE, self.total, "all parameters"),
            Held(step, "quantized weights", DEVICE, kept, formula),
        ]

    def _waiting(self, step: str) -> Held:
        hidden = self._hidden(self.language, self.work.pairs)
        for tower in (t for t in self.towers if t is not self.language and t.sites):
            out = tower.sites[-1].leader.out_features
            hidden += self.work.pairs * self.work.patches * out * self.element
        where = DISK if self.work.spills else RAM
        return Held(step, "hidden states", where, hidden, "N T D e, and what earlier towers gave")

    def _reservoirs(self, step: str) -> Held:
        every = sum(self._reservoir(t, u) for t in self.towers for u in t.units)
        return Held(step, "reservoirs", RAM, every, "4 I min(8192, N T) of all layers")

    def _block(self, tower: Tower, layers: int, size: Callable[[Unit], int]) -> int:
        sizes = [size(unit) for unit in tower.units]
        return max(sum(sizes[i : i + layers]) for i in range(len(sizes)))

    def _hidden(self, tower: Tower, pairs: int) -> int:
        width = max((_width(unit) for unit in tower.units), default=0)
        return pairs * self.work.tokens_of(tower.name) * width * self.element

    def _inputs(self, tower: Tower, unit: Unit, pairs: int) -> int:
        widths = [site.leader.in_features for site in unit.sites]
        every = sum(widths) + max(widths, default=0)
        return pairs * self.work.tokens_of(tower.name) * every * self.element

    def _layer(self, tower: Tower, unit: Unit, candidates: int, quantized: bool) -> int:
        widest = max((site.leader.in_features for site in unit.sites), default=0)
        each = self.element + (8 if quantized else 0)  # fake quantization: two float32 copies
        per_token = 4 * _width(unit) * self.element + widest * each
        return candidates * self.work.batch_size * self.work.tokens_of(tower.name) * per_token

    def _reservoir(self, tower: Tower, unit: Unit) -> int:
        kept = min(RESERVOIR, self.work.pairs * self.work.tokens_of(tower.name))
        return sum(4 * kept * site.leader.in_features for site in unit.sites)

    def _saved(self, tower: Tower, unit: Unit) -> int:
        into = sum(site.leader.in_features for site in unit.sites)
        out = sum(x.out_features for site in unit.sites for x in site.linears.values())
        per_token = (into + out) * self.element + 8 * _width(unit)
        if tower.name == "language":
            return self.work.tokens_of(tower.name) * per_token
        # weights learn their clipping here: their quantized inputs are kept as well
        return self.work.tokens_of(tower.name) * (per_token + into * self.element)

    def _logits(self) -> int:
        return self.work.batch_size * self.work.tokens * int(self.vocabulary.out_features)


def _most(towers: list[Tower], size: Callable[[Tower, Unit], int]) -> int:
    return max(size(tower, unit) for tower in towers for unit in tower.units)


def _bytes(module: nn.Module) -> int:
    ours = ("clip_ratio", "low_ratio", "high_ratio")
    return sum(p.nbytes for n, p in module.named_parameters() if not n.endswith(ours))


def _quantized(unit: Unit) -> int:
    linears = [x for site in unit.sites for x in site.linears.values() if x.weight_bits < OFF]
    return sum(x.weight.nbytes for x in linears)


def _width(unit: Unit) -> int:
    return unit.sites[0].leader.in_features if unit.sites else 0

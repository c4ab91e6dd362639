"""Decisions of a tower, block after block, and the model that carries them."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qvlm_lightning.calibration.decisions import Decided, Decisions, decide, search_key
from qvlm_lightning.calibration.modality_gradients import modality_gradients
from qvlm_lightning.calibration.state import CalibrationState
from qvlm_lightning.calibration.statistics import Statistics
from qvlm_lightning.forward.passes import Passes
from qvlm_lightning.forward.samples import Batch
from qvlm_lightning.forward.stream import StreamedModel
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.block import Block
from qvlm_lightning.methods.token_weights import Gradients
from qvlm_lightning.models.family import VLMFamily
from qvlm_lightning.nn.changes import as_stored, commit
from qvlm_lightning.nn.distributed import barrier, from_main, is_main
from qvlm_lightning.nn.replay import UnitInput, run_unit
from qvlm_lightning.nn.structure import Tower
from qvlm_lightning.progress import Progress
from qvlm_lightning.results.objectives import scores_of


class BlockSearch:
    """Lets a method decide the blocks of a model, and puts what it decided into the model.

    Args:
        passes: run the model.
        batches: all calibration batches, and those of the search.
        family: tells kinds of tokens and sources of sites.
        statistics: ranges of the full-precision activations.
        state: takes down what was decided.
        decisions: files of finished blocks.
        progress: called as ``progress(what, done, of, note)``.
    """

    def __init__(
        self,
        passes: Passes,
        batches: tuple[Sequence[Batch], Sequence[Batch]],
        family: VLMFamily,
        statistics: Statistics,
        state: CalibrationState,
        decisions: Decisions,
        progress: Progress | None = None,
    ) -> None:
        self.passes, self.structure, self.batches = passes, passes.structure, batches
        self.family, self.statistics, self.state = family, statistics, state
        self.decisions, self.progress = decisions, progress

    @property
    def streamed(self) -> bool:
        """Whether the model is read layer by layer."""
        return isinstance(self.passes, StreamedModel)

    def quantized_before(self, tower: Tower) -> set[str]:
        """Return the towers before ``tower`` that have been decided."""
        names = list(self.structure.towers)
        return set(self.state.searched) & set(names[: names.index(tower.name)])

    def search(
        self, towers: Sequence[str], method: Method, name: str, identity: Sequence[Any]
    ) -> None:
        """Let ``method`` decide every block of ``towers``, in forward order.

        Args:
            towers: in forward order; earlier ones stay as they are and feed these.
            method: decides per block.
            name: name of this pass, under which finished blocks are kept.
            identity: plain values that stored decisions depend on: model, scheme, seed.
        """
        decided: list[Decided] = []
        for tower in (self.structure.towers[t] for t in towers):
            if tower.sites:
                decided += self._search_tower(tower, method, name, identity)
                self.state.searched = [
                    *(t for t in self.state.searched if t != tower.name),
                    tower.name,
                ]
        spent = ("layer_forwards", "site_forwards", "seconds")
        costs = {what: sum(one.cost[what] for one in decided) for what in spent}
        self.state.passes.append({"name": name, "towers": list(towers), **costs})

    @torch.no_grad()
    def _search_tower(
        self, tower: Tower, method: Method, name: str, identity: Sequence[Any]
    ) -> list[Decided]:
        """Return the decision of every block with what it cost, by whichever process it was
        taken.
        """
        self._undecide(tower)
        if method.needs_gradients and tower.name == "language":
            self._measure_gradients(tower)
        exact, quantized = self.chains(tower, method)
        blocks = self.state.partition.setdefault(
            tower.name, [[i, i] for i in range(len(tower.units))]
        )
        candidates = method.candidates(tower.sites[0].quantizer.mode)
        key = search_key(
            [*identity, [u.name for u in tower.units], *self._gradients_of(method)],
            blocks,
            method,
            [call.hidden for call in (*exact, *quantized)],
            [b for site in tower.sites for b in self.statistics.ranges(site, candidates)],
        )
        name = f"{name}-{tower.name}"
        decided: list[Decided] = []
        objective = [o for o in self.state.objective if o["tower"] != tower.name]
        with self.structure.only({tower.name}):
            for index, (first, last) in enumerate(blocks):
                units = tower.units[first : last + 1]
                self._show(tower, blocks, index, objective)
                with self.passes.held(units):
                    started = time.perf_counter()
                    block = self.block(tower, first, last, exact, quantized, method)
                    one = from_main(self.decisions.read(name, key, index) if is_main() else None)
                    if one is None:
                        one = from_main(decide(block, method, started))
                        one.decision.tensors = as_stored(one.decision.tensors, block.stored)
                        if is_main():
                            self.decisions.write(name, key, index, one)
                        barrier()
                    decided.append(one)
                    self._commit(tower, block, one, self.decisions.file(name, index))
                    place = {"tower": tower.name, "first": first, "last": last}
                    objective.append(place | one.decision.scores)
                    targets = map(self.passes.keep, block.targets)
                    exact = [c.advanced(t) for c, t in zip(exact, targets, strict=True)]
                    for unit in units:
                        quantized = [c.advanced(run_unit(unit, c.hidden, c)) for c in quantized]
                quantized = [c.advanced(self.passes.keep(c.hidden)) for c in quantized]
        self._show(tower, blocks, len(blocks), objective)
        self.state.objective = objective
        return decided

    def _show(
        self,
        tower: Tower,
        blocks: Sequence[Sequence[int]],
        index: int,
        objective: Sequence[Mapping[str, Any]],
    ) -> None:
        """Show which block is decided now, and what J the one before it had and has."""
        if self.progress is None:
            return
        done, count = sum(last - first + 1 for first, last in blocks[:index]), len(blocks)
        notes = []
        if index < count:
            notes.append(f"block {index + 1}/{count}: {layers(*blocks[index])}")
        if index and (scores := list(scores_of(objective[-1]).values())):
            notes.append(f"J {scores[0]:.3g}->{scores[-1]:.3g}")
        self.progress(f"search {tower.name}", done, len(tower.units), ", ".join(notes))

    def chains(self, tower: Tower, method: Method) -> tuple[list[UnitInput], list[UnitInput]]:
        """Return the calls of a tower's first unit, in full precision and behind quantized
        towers.
        """
        batches = self.batches[0 if method.pairs == "all" else 1]
        before = self.quantized_before(tower)
        exact, *others = self.passes.calls(tower, batches, [set(), before] if before else [set()])
        quantized = others[0] if others else list(exact)  # without any before, they are the same
        if method.needs_kind and tower.name == "language":
            for batch, *calls in zip(batches, exact, quantized, strict=True):
                kind = self.family.token_kind(batch).to(self.passes.device)
                for call in calls:
                    call.kind = kind
        return exact, quantized

    def _measure_gradients(self, tower: Tower) -> None:
        """Take one gradient pass in full precision, which is the same at every epoch."""
        if not self.state.gradients:
            measured = modality_gradients(self.passes, tower, self.batches[0], self.family)
            self.state.gradients = measured

    def _gradients_of(self, method: Method) -> list[Gradients]:
        """Return the gradients, if a method's decisions depend on them."""
        return [self.state.gradients] if method.needs_gradients else []

    def _undecide(self, tower: Tower) -> None:
        """Let a tower's layers have their own weights and measured weight ranges again."""
        for name in self.structure.changes.drop(tower.name):
            self.state.changed.pop(name, None)
        for site in tower.sites:
            for linear in site.linears.values():
                linear.weight_quantizer.measure_again()

    def _commit(self, tower: Tower, block: Block, decided: Decided, file: str) -> None:
        """Put a decision into the model; a streamed one reads changed weights from its file."""
        tensors, changes = decided.decision.tensors, self.structure.changes
        stored = self.decisions.folder is not None
        reader = None
        if self.streamed:
            reader = partial(self._reader, file) if stored else partial(_reader_of, tensors)
        changed = commit(self.passes.model, changes, tower.name, tensors, reader)
        if stored:
            self.state.changed |= dict.fromkeys(changed, file)
        for site in block.sites:
            self.state.percentiles[site.name] = float(site.quantizer.percentile)

    def _reader(self, file: str, name: str) -> Callable[[], Tensor]:
        return partial(self.decisions.tensor, file, name)

    def restore_changes(self) -> None:
        """Put the changed weights that ``state.changed`` names into the model.

        Raises:
            InputError: the file of a decision is missing or broken.
        """
        for name, file in self.state.changed.items():
            tower = next(
                t.name
                for t in self.structure.towers.values()
                if any(name.startswith(f"{unit.name}.") for unit in t.units)
            )
            read = self._reader(file, name)
            value = read()  # a file that is missing is noticed now
            self.structure.changes.set(
                self.passes.model, tower, name, read if self.streamed else value
            )

    def block(
        self,
        tower: Tower,
        first: int,
        last: int,
        exact: list[UnitInput],
        quantized: list[UnitInput],
        method: Method,
    ) -> Block:
        """Return a block with its full-precision targets, as a method wants it.

        Args:
            tower: the tower.
            first: place of its first unit in the tower.
            last: place of its last one.
            exact: calls of the first unit in full precision.
            quantized: the same behind quantized units.
            method: says candidates, objective and token weights.
        """
        units = tower.units[first : last + 1]
        candidates = method.candidates(tower.sites[0].quantizer.mode)
        tables = [
            [self.statistics.ranges(site, candidates) for site in unit.sites] for unit in units
        ]
        # a factor of a channel means nothing behind a transform that mixes channels
        mixed = {x for unit in units for s in unit.sites if s.transform for x in s.linears}
        sources = {
            f"{unit.name}.{site}": source.under(unit.name)
            for unit in units
            for site, source in self.family.sources(unit.module).items()
            if not mixed.intersection(source.under(unit.name).readers)
        }
        block = Block(units, exact, quantized, [], candidates, tables, sources)
        block.attentions = {
            unit.name: attention.under(unit.name)
            for unit in units
            if (attention := self.family.attention(unit.module)) is not None
        }
        block.objective, block.token_weights = method.objective, method.token_weights
        block.stored = self.structure.stored
        block.gradients = self.state.gradients
        hidden = [call.hidden for call in exact]
        for index in range(len(units)):
            hidden = block.advance_full_precision(hidden, index)
        block.targets = hidden
        return block


def _reader_of(tensors: Mapping[str, Tensor], name: str) -> Callable[[], Tensor]:
    return partial(tensors.__getitem__, name)


def layers(first: int, last: int) -> str:
    """Write a block by the numbers of its layers.

    Example:
        >>> layers(2, 2), layers(2, 4)
        ('layer 2', 'layers 2-4')
    """
    return f"layer {first}" if first == last else f"layers {first}-{last}"

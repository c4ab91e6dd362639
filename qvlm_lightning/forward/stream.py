"""Forward passes of a model that is larger than memory: layer after layer, all batches at once.

One sweep reads every layer's weights once. A calibration makes one for the sink tokens, if it is
asked to look for them, one for the statistics, one per tower for the dependency (of the layers up
to that tower) and one for the search, which also repeats the towers in front of the one it
searches; the export reads the files once more. A step of the visual-encoder optimisation makes two,
forwards and backwards.
"""

import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvlm_lightning.forward.passes import OnInput, OnLogits, OnProgress, OnUnitDone, Passes
from qvlm_lightning.forward.samples import Batch, model_inputs
from qvlm_lightning.forward.stand_in import refuse, runnable, stand_in
from qvlm_lightning.nn.recompute import recomputed
from qvlm_lightning.nn.replay import UnitInput, catch_calls, run_unit
from qvlm_lightning.nn.structure import Structure, Tower, Unit
from qvlm_lightning.nn.taps import stop_at, taps
from qvlm_lightning.weights.streamed import StreamedWeights

Calls = dict[int, UnitInput]
Timed = Callable[[str, float, float], None]
Outputs = dict[str, dict[str, dict[int, Tensor]]]
"""Tower -> unit -> batch -> what it gave, of those units that somebody else reads."""


class StreamedModel(Passes):
    """Passes of a model of which one block is in memory at a time.

    What lies between towers (embeddings, picking features, putting them among the text) is the
    model's own code: it runs up to the next tower with the towers behind it replaced by what they
    gave.

    Args:
        model: with quantized layers, without weights.
        structure: its towers.
        weights: put the weights in place.
        spill: folder for hidden states that wait for their next layer; ``None`` keeps them in RAM.

    Attributes:
        timed: told, in the next pass, how long a layer of each tower took to read and to run.
    """

    def __init__(
        self,
        model: Any,
        structure: Structure,
        weights: StreamedWeights,
        spill: Path | None = None,
    ) -> None:
        super().__init__(model, structure)
        self.weights, self.spill = weights, spill
        weights.changes = structure.changes
        self.timed: Timed | None = None
        self._numbers = itertools.count()
        self._tuples: set[str] = set()
        self._exits: set[str] = set()
        self._tower_of = {u.name: t.name for t in structure.towers.values() for u in t.units}
        self.of_unit = {name: weights.below(name) for name in self._tower_of}
        inside = {name for names in self.of_unit.values() for name in names}
        head = model.get_output_embeddings()
        places = [name for name, module in model.named_modules() if module is head]
        self.head = [n for place in places for n in weights.below(place)]
        self.rest = [n for n in weights.dtypes if n not in inside and n not in self.head]
        """Parameters between the towers, such as the embeddings: there while a tower is entered."""
        # on a CPU a Linear layer without a weight returns whatever lies in memory
        for unit in structure.units:
            refuse(unit)

    @property
    def device(self) -> torch.device:
        """Where the block lies."""
        return self.weights.device

    @contextmanager
    def held(self, units: Sequence[Unit]) -> Iterator[None]:
        """Put the weights of ``units`` in place; without them they refuse to run."""
        names = [name for unit in units for name in self.of_unit[unit.name]]
        with runnable(units), self.weights.held(names):
            yield

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Let the model be called as a whole: each layer reads its weights when it runs, and again
        when the backward pass comes to it (see :meth:`Passes.differentiable`).
        """
        with (
            self.weights.held([*self.rest, *self.head]),
            recomputed(self.structure.units, self.held),
        ):
            yield

    def keep(self, hidden: Tensor) -> Tensor:
        """Spill to disk, where that is asked for and the block runs on the CPU."""
        return self._store(hidden) if self.device.type == "cpu" else hidden

    @torch.no_grad()
    def watch(
        self,
        batches: Mapping[int, Batch],
        modules: dict[str, nn.Module],
        quantized: set[str],
        on_input: OnInput,
        last: str = "language",
        on_unit_done: OnUnitDone | None = None,
        progress: OnProgress | None = None,
    ) -> None:
        """Run layer after layer (see :meth:`Passes.watch`)."""
        number = -1

        def note(name: str, x: Tensor) -> None:
            if number >= 0:
                on_input(number, name, x)

        with self.structure.only(quantized), taps(modules, note):
            for tower, unit, calls in self._layers(last, batches, {}, progress):
                some = next(iter(calls.values()), None)
                with self.held([unit]):
                    for number in calls:
                        calls[number] = self._step(unit, calls[number])
                number = -1
                if self.timed and some and unit in tower.units[1:2]:  # the first one also warms up
                    read, run = self._seconds(unit, some)  # statistics may take longer than layers
                    self.timed(tower.name, read, run * len(calls))
                if on_unit_done:
                    on_unit_done(unit)
            self.timed = None  # once is enough

    @torch.no_grad()
    def calls(
        self, tower: Tower, batches: Sequence[Batch], variants: Sequence[set[str]]
    ) -> list[list[UnitInput]]:
        """Run the towers before ``tower`` layer by layer, every variant (see
        :meth:`Passes.calls`).
        """
        numbered = dict(enumerate(batches))
        outputs: list[Outputs] = [{} for _ in variants]
        for earlier in self._up_to(tower.name)[:-1]:
            entered = [self._enter(earlier, numbered, given) for given in outputs]
            for given in outputs:
                given[earlier.name] = {}
            for unit in earlier.units:
                with ExitStack() as stack:
                    if not self.structure.changes:  # then every variant has the same weights
                        stack.enter_context(self.held([unit]))
                    for quantized, calls in zip(variants, entered, strict=True):
                        with self.structure.only(quantized), self.held([unit]):
                            for number in calls:
                                calls[number] = self._step(unit, calls[number])
                for given, calls in zip(outputs, entered, strict=True):
                    self._note(earlier, unit, calls, given)
        found = []
        for given in outputs:
            calls = self._enter(tower, numbered, given)
            for call in calls.values():
                call.hidden = call.hidden.to(self.device)
            found.append(list(calls.values()))
        return found

    @torch.no_grad()
    def logits(
        self,
        batches: Mapping[int, Batch],
        quantized: Mapping[int, Collection[str]],
        on_logits: OnLogits,
        progress: OnProgress | None = None,
    ) -> None:
        """Run layer after layer (see :meth:`Passes.logits`), one quantized for some twice."""
        outputs: Outputs = {}
        for _, unit, calls in self._layers("language", batches, outputs, progress):
            on = {number for number in calls if unit.name in quantized[number]}
            for names, numbers in (((), calls.keys() - on), ((unit.name,), on)):
                if numbers:
                    with self.structure.only_units(names), self.held([unit]):
                        for number in numbers:
                            calls[number] = self._step(unit, calls[number])
        number = -1
        with self.weights.held([*self.rest, *self.head]), ExitStack() as stack:
            self._replay(stack, outputs, lambda: number)
            for number, batch in batches.items():
                inputs = model_inputs(batch, self.device)
                on_logits(number, self.model(**inputs, use_cache=False).logits)

    def _seconds(self, unit: Unit, call: UnitInput) -> tuple[float, float]:
        """Return how long a layer takes to read and to run one batch, watched by nobody."""
        started = time.perf_counter()
        with self.held([unit]):
            read = time.perf_counter()
            self._step(unit, call)
            return read - started, time.perf_counter() - read

    def _layers(
        self, last: str, batches: Mapping[int, Batch], outputs: Outputs, progress: OnProgress | None
    ) -> Iterator[tuple[Tower, Unit, Calls]]:
        """Yield layer after layer with how every batch calls it; whoever asks advances the calls.

        What others than the next layer read is put into ``outputs``.
        """
        towers = self._up_to(last)
        total, count = sum(len(tower.units) for tower in towers), 0
        for tower in towers:
            calls = self._enter(tower, batches, outputs)
            outputs[tower.name] = {}
            for unit in tower.units:
                yield tower, unit, calls
                self._note(tower, unit, calls, outputs)
                count += 1
                if progress:
                    progress(count, total)

    def _note(self, tower: Tower, unit: Unit, calls: Calls, outputs: Outputs) -> None:
        """Keep what a unit gave, if more than the next unit reads it."""
        if unit is tower.units[-1] or unit.name in self._exits:
            outputs[tower.name][unit.name] = {n: call.hidden for n, call in calls.items()}

    def _up_to(self, last: str) -> list[Tower]:
        names = list(self.structure.towers)
        chosen = names[: names.index(last) + 1]
        return [self.structure.towers[n] for n in chosen if self.structure.towers[n].units]

    def _behind(self, tower: Tower) -> list[Tower]:
        names = list(self.structure.towers)
        chosen = names[names.index(tower.name) + 1 :]
        return [self.structure.towers[n] for n in chosen if self.structure.towers[n].units]

    def _step(self, unit: Unit, call: UnitInput) -> UnitInput:
        """Run a unit on one batch."""

        def note(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, tuple):
                self._tuples.add(unit.name)

        handle = unit.module.register_forward_hook(note)
        try:
            hidden = run_unit(unit, call.hidden.to(self.device), call)
        finally:
            handle.remove()
        return call.advanced(self._store(hidden))

    def _store(self, hidden: Tensor) -> Tensor:
        """Return ``hidden`` in RAM, or in a mapped file that goes away with the last reference."""
        if self.spill is None:
            return hidden.cpu()
        self.spill.mkdir(parents=True, exist_ok=True)
        path = self.spill / f"hidden-{os.getpid()}-{next(self._numbers)}"
        stored = torch.from_file(str(path), True, size=hidden.numel(), dtype=hidden.dtype)
        path.unlink()
        return stored.copy_(hidden.reshape(-1)).reshape(hidden.shape)

    def _enter(self, tower: Tower, batches: Mapping[int, Batch], outputs: Outputs) -> Calls:
        """Return how every batch calls the units of a tower, given what earlier ones gave."""
        calls: Calls = {}
        number = -1
        with ExitStack() as stack:
            stack.enter_context(self.weights.held(self.rest))
            self._replay(stack, outputs, lambda: number)
            reached: list[Unit] = []
            for unit in tower.units[:-1]:

                def nothing(hidden: Tensor, unit: Unit = unit) -> Tensor:
                    reached[:] = [unit]
                    return torch.zeros_like(hidden)

                stack.enter_context(stand_in(unit, nothing, self._tuples))

            def way_out(hidden: Tensor) -> Tensor:
                self._exits.update(unit.name for unit in reached)
                return hidden[:0]

            for later in self._behind(tower):
                if later.name == "language":  # a batch without images comes here at once
                    stack.enter_context(stop_at(later.units[0].module, lambda *_: None))
                else:
                    stack.enter_context(stand_in(later.units[0], way_out, self._tuples))
            for number, batch in batches.items():
                inputs = model_inputs(batch, self.device)
                call = catch_calls(self.model, tower.units, inputs)
                if call is not None:
                    call = self.masked(tower, batch, call)
                    calls[number] = call.advanced(self._store(call.hidden))
        return calls

    def _replay(self, stack: ExitStack, outputs: Outputs, number: Callable[[], int]) -> None:
        """Let units give what they gave, until ``stack`` is closed; for the batch of ``number``."""
        for unit in [u for name in outputs for u in self.structure.towers[name].units]:
            given = outputs[self._tower_of[unit.name]].get(unit.name)

            def gave(hidden: Tensor, given: dict[int, Tensor] | None = given) -> Tensor:
                return hidden if given is None else given[number()].to(self.device)

            stack.enter_context(stand_in(unit, gave, self._tuples))

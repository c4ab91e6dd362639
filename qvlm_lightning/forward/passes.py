"""Forward passes over the calibration set: of a model that is in memory, or of one that is not."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from qvlm_lightning.forward.samples import Batch, model_inputs, rows_and_mask
from qvlm_lightning.nn.recompute import recomputed
from qvlm_lightning.nn.replay import UnitInput, catch_calls
from qvlm_lightning.nn.structure import Structure, Tower, Unit
from qvlm_lightning.nn.taps import taps

OnInput = Callable[[int, str, Tensor], None]
OnUnitDone = Callable[[Unit], None]
OnProgress = Callable[[int, int], None]
OnLogits = Callable[[int, Tensor], None]


class Passes(ABC):
    """How a calibration runs the model; what it computes from what it sees is the same for all.

    Args:
        model: with quantized layers.
        structure: its towers.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self.model, self.structure = model, structure

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where layers run."""

    @abstractmethod
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
        """Run the model over batches and look at the inputs of ``modules``, without gradients.

        Args:
            batches: number -> batch.
            modules: name -> module; all lie in layers of towers up to ``last``.
            quantized: towers whose quantizers are on.
            on_input: called as ``on_input(number, name, input)`` before a module runs; batch after
                batch or layer after layer.
            last: what lies behind this tower need not run.
            on_unit_done: called with a unit that no batch will reach any more, by whoever can tell
                while it runs.
            progress: called as ``progress(count, of)``.
        """

    @abstractmethod
    def calls(
        self, tower: Tower, batches: Sequence[Batch], variants: Sequence[set[str]]
    ) -> list[list[UnitInput]]:
        """Return per variant the call of the tower's first unit, for every batch that makes it.

        Args:
            tower: the tower.
            batches: what to run.
            variants: each names the towers whose quantizers are on.
        """

    @abstractmethod
    def logits(
        self,
        batches: Mapping[int, Batch],
        quantized: Mapping[int, Collection[str]],
        on_logits: OnLogits,
        progress: OnProgress | None = None,
    ) -> None:
        """Run the whole model over batches, each with quantizers of its own, without gradients.

        Args:
            batches: number -> batch; one batch may have several numbers.
            quantized: number -> names of the units whose quantizers are on.
            on_logits: called as ``on_logits(number, logits)`` with [B, T, V], in the order of
                ``batches``.
            progress: called as ``progress(count, of)``.
        """

    @abstractmethod
    def held(self, units: Sequence[Unit]) -> AbstractContextManager[None]:
        """Within the block the weights of ``units`` can be used; afterwards nothing is kept that
        can be made again.
        """

    @abstractmethod
    def differentiable(self) -> AbstractContextManager[None]:
        """Within the block the model can be called as a whole, without a key-value cache; a
        backward pass may follow, within the block or behind it.
        """

    def keep(self, hidden: Tensor) -> Tensor:
        """Return a hidden state as it waits for the next block."""
        return hidden

    def masked(self, tower: Tower, batch: Batch, call: UnitInput) -> UnitInput:
        """Note which tokens of a call count, and which are sinks."""
        mask = rows_and_mask(tower.name, batch)[1]
        call.mask = None if mask is None else mask.to(self.device)
        sinks = self.structure.sinks
        if tower.name == "language" and sinks is not None and sinks.found:
            place = sinks.places(batch["input_ids"], batch["attention_mask"])
            call.sinks = sinks, place.to(self.device)
        return call


class WholeModel(Passes):
    """Passes of a model that is in memory as a whole.

    Attributes:
        activation_checkpointing: a backward pass finds of every layer its input only, and runs it
            again; of a layer that has run, no quantized weight is kept.
    """

    activation_checkpointing = False

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @contextmanager
    def held(self, units: Sequence[Unit]) -> Iterator[None]:
        """Let the quantized weights of ``units`` go afterwards (see :meth:`Passes.held`)."""
        try:
            yield
        finally:
            for site in (site for unit in units for site in unit.sites):
                for linear in site.linears.values():
                    linear.forget()

    def differentiable(self) -> AbstractContextManager[None]:
        """Change nothing without activation checkpointing (see :meth:`Passes.differentiable`)."""
        if not self.activation_checkpointing:
            return nullcontext()
        return recomputed(self.structure.units, self.held)

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
        """Run batch after batch through the model (see :meth:`Passes.watch`)."""
        with self.structure.only(quantized):
            for count, (number, batch) in enumerate(batches.items()):

                def note(name: str, x: Tensor, number: int = number) -> None:
                    on_input(number, name, x)

                with taps(modules, note):
                    self.model(**model_inputs(batch, self.device))
                if progress:
                    progress(count + 1, len(batches))

    @torch.no_grad()
    def calls(
        self, tower: Tower, batches: Sequence[Batch], variants: Sequence[set[str]]
    ) -> list[list[UnitInput]]:
        """Run the model up to the tower (see :meth:`Passes.calls`)."""
        found = []
        for quantized in variants:
            calls = []
            with self.structure.only(quantized):
                for batch in batches:
                    inputs = model_inputs(batch, self.device)
                    call = catch_calls(self.model, tower.units, inputs)
                    if call is not None:
                        calls.append(self.masked(tower, batch, call))
            found.append(calls)
        return found

    @torch.no_grad()
    def logits(
        self,
        batches: Mapping[int, Batch],
        quantized: Mapping[int, Collection[str]],
        on_logits: OnLogits,
        progress: OnProgress | None = None,
    ) -> None:
        """Run batch after batch (see :meth:`Passes.logits`); of a layer that has run, no quantized
        weight is kept.
        """
        with recomputed(self.structure.units, self.held):
            for count, (number, batch) in enumerate(batches.items()):
                inputs = model_inputs(batch, self.device)
                with self.structure.only_units(quantized[number]):
                    on_logits(number, self.model(**inputs, use_cache=False).logits)
                if progress:
                    progress(count + 1, len(batches))

"""What a calibration is asked to do, what else gives the same result, and what fits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.percentile import MinMax

DEVICE, RAM, DISK = "device", "ram", "disk"


@dataclass(frozen=True)
class Work:
    """What a calibration is asked to do.

    Attributes:
        pairs: calibration pairs.
        search_pairs: those of the search.
        batch_size: pairs of a batch, over all processes.
        processes: processes that share the work.
        tokens: tokens of a pair in the decoder, those of its image included.
        patches: tokens of a pair in the tower.
        depth: most layers in a block.
        method: how blocks are searched; ``None`` for no search.
        optimises: whether the tower is optimised with gradients through the whole model.
        streaming: whether the model is read layer by layer.
        spills: whether hidden states wait on disk, where streaming keeps them out of the device.
        micro_batches: parts of an optimiser's step that run one after another.
        activation_checkpointing: whether layers run again for the backward pass; streamed ones
            always do.
    """

    pairs: int
    search_pairs: int
    batch_size: int
    processes: int
    tokens: int
    patches: int
    depth: int
    method: Method | None
    optimises: bool
    streaming: bool
    spills: bool = False
    micro_batches: int = 1
    activation_checkpointing: bool = False

    @property
    def candidates(self) -> int:
        """Candidates that are stacked: one per percentile; at the end the three choices at once."""
        if self.method is None or isinstance(self.method, MinMax):
            return 1
        return max(len(self.method.percentiles), 3)

    @property
    def smallest_batch(self) -> int:
        """Pairs of the last batch, or of all."""
        return self.pairs % self.batch_size or self.batch_size

    def check(self) -> None:
        """Check that sizes are possible and that every process and part has a pair of every batch.

        Raises:
            InputError: they are not, or one has not.
        """
        for name in ("pairs", "search_pairs", "batch_size", "micro_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is not allowed; at least 1")
        if self.search_pairs > self.pairs:
            raise InputError(f"search_pairs {self.search_pairs} is not allowed; 1 to {self.pairs}")
        parts = self.micro_batches * self.processes
        if self.smallest_batch < parts:
            raise InputError(
                f"micro_batches {self.micro_batches} on {self.processes} process(es) needs "
                f"batches of at least {parts} pairs; the smallest of {self.pairs} pairs in batches "
                f"of {self.batch_size} has {self.smallest_batch}"
            )

    def tokens_of(self, tower: str) -> int:
        """Return the tokens of a pair in a tower."""
        return self.tokens if tower == "language" else self.patches


@dataclass(frozen=True)
class Held:
    """One thing that is held: during which step, where, how large, and why."""

    step: str
    what: str
    where: str
    nbytes: int
    formula: str


def searches(callbacks: Iterable[Any]) -> tuple[Method | None, int | None]:
    """Return a run's method of search and the most layers in a block, ``None`` where it has none.

    By what callbacks hold: which ones there are is the configuration's affair.
    """
    callbacks = list(callbacks)
    methods = [getattr(callback, "method", None) for callback in callbacks]
    depths = [c.options["max_depth"] for c in callbacks if hasattr(c, "options")]
    return next((m for m in methods if isinstance(m, Method)), None), max(depths, default=None)


def peak(held: list[Held], where: str) -> int:
    """Return the largest sum over the things held in one place during one step."""
    steps = {h.step for h in held}
    return max(sum(h.nbytes for h in held if (h.step, h.where) == (s, where)) for s in steps)


def alternatives(work: Work) -> list[Work]:
    """Return ``work`` and what gives the same result with less memory on the device, most first.

    Statistics, dependency and objective are sums over the pairs, so that a search gives the same
    with any batch. An optimiser's step is one batch, of which micro-batches hold parts.
    """
    if not work.optimises:
        sizes = (n for n in range(work.batch_size, 0, -1) if work.batch_size % n == 0)
        return [replace(work, batch_size=size) for size in sizes]
    share = max(work.smallest_batch // work.processes, 1)
    parts = (n for n in range(work.micro_batches, share + 1) if share % n == 0)
    return [work, *(replace(work, micro_batches=n) for n in parts if n != work.micro_batches)]


def first_that_fits(measure: Callable[[Work], list[Held]], work: Work, limit: int) -> Work | None:
    """Return the first of the :func:`alternatives` that fits on the device, or ``None``.

    Args:
        measure: :func:`memory` of some work.
        work: what is asked.
        limit: bytes of the device.
    """
    fitting = (w for w in alternatives(work) if peak(measure(w), DEVICE) <= limit)
    return next(fitting, None)


def levers(work: Work) -> str:
    """Return what makes a calibration smaller than the smallest of its :func:`alternatives`."""
    found = [] if work.streaming else ["--model.streaming=true"]
    if work.optimises:
        whole = not (work.activation_checkpointing or work.streaming)
        found += ["--model.activation_checkpointing=true"] if whole else []
        found.append("a method without optimisation (configs/methods/cdm.yaml)")
    elif work.streaming:
        found.append("fewer search_pairs")
    return ", or ".join(found)

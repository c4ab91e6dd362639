"""Workload of a calibration, what else gives the same result, and what fits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from qvlm_lightning.errors import InputError
from qvlm_lightning.forward.samples import Batch
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.percentile import MinMax

DEVICE, RAM, DISK = "device", "ram", "disk"


@dataclass(frozen=True)
class Workload:
    """What a calibration is asked to do.

    Attributes:
        pairs: calibration pairs.
        search_pairs: those of the search.
        batch_size: pairs of a batch, over all processes.
        tokens: tokens of a pair in the decoder, those of its image included.
        patches: tokens of a pair in the tower.
        depth: most layers in a block.
        method: how blocks are searched; ``None`` for no search.
        processes: processes that share the work.
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
    tokens: int
    patches: int
    depth: int
    method: Method | None
    processes: int = 1
    optimises: bool = False
    streaming: bool = False
    spills: bool = False
    micro_batches: int = 1
    activation_checkpointing: bool = False

    @property
    def candidates(self) -> int:
        """Candidates that are stacked: one per percentile; at the end the three choices at once."""
        if self.method is None or isinstance(self.method, MinMax):
            return 1
        return max(len(self.method.candidates("static_tensor")), 3)

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
class Allocation:
    """Memory held during one step: what it is for, where it lies, its size, and why.

    Attributes:
        step: of the calibration, such as ``search``.
        what: what the memory holds.
        where: ``device``, ``ram`` or ``disk``.
        nbytes: bytes of one process.
        formula: in the letters of :mod:`qvlm_lightning.estimate.memory`, or words.
    """

    step: str
    what: str
    where: str
    nbytes: int
    formula: str


def workload_of(calibrator: Any, method: Method | None, depth: int, **options: Any) -> Workload:
    """Return the workload of a built calibrator; lengths are means over its pairs.

    Args:
        calibrator: holds batches and family.
        method: how blocks are searched; ``None`` for no search.
        depth: most layers in a block.
        options: the other fields of :class:`Workload`, where they are not the defaults.
    """
    batches, family = calibrator.batches, calibrator.family
    pairs = sum(len(b["sample_index"]) for b in batches)
    rows = sum(
        int((b["image_rows"] if "image_rows" in b else b["has_image"]).sum()) for b in batches
    )
    patches = (family.vision_positions(calibrator.model) or 1) * rows
    return Workload(
        pairs=pairs,
        search_pairs=sum(len(b["sample_index"]) for b in calibrator.search_batches),
        batch_size=max(len(b["sample_index"]) for b in batches),
        tokens=-(-token_count(batches) // pairs),
        patches=-(-patches // pairs),
        depth=depth,
        method=method,
        **options,
    )


def token_count(batches: Iterable[Batch]) -> int:
    """Return the tokens of batches in the decoder, padding included."""
    return sum(batch["attention_mask"].numel() for batch in batches)


def peak(allocations: list[Allocation], where: str) -> int:
    """Return the largest sum, in bytes, over what lies in one place during one step."""
    steps = {a.step for a in allocations}
    return max(sum(a.nbytes for a in allocations if (a.step, a.where) == (s, where)) for s in steps)


def alternatives(workload: Workload) -> list[Workload]:
    """Return ``workload`` and what gives the same result with less memory on the device, most
    first.

    Statistics, dependency and objective are sums over the pairs, so that a search gives the same
    with any batch. An optimiser's step is one batch, of which micro-batches hold parts.
    """
    if not workload.optimises:
        size = workload.batch_size
        sizes = (n for n in range(size, 0, -1) if size % n == 0)
        return [replace(workload, batch_size=n) for n in sizes]
    present = workload.micro_batches
    share = max(workload.smallest_batch // workload.processes, 1)
    parts = (n for n in range(present, share + 1) if share % n == 0 and n != present)
    return [workload, *(replace(workload, micro_batches=n) for n in parts)]


def first_that_fits(
    measure: Callable[[Workload], list[Allocation]], workload: Workload, limit: int
) -> Workload | None:
    """Return the first of the :func:`alternatives` that fits on the device, or ``None``.

    Args:
        measure: allocations of a workload.
        workload: what is asked.
        limit: bytes of the device.
    """
    fitting = (w for w in alternatives(workload) if peak(measure(w), DEVICE) <= limit)
    return next(fitting, None)


def levers(workload: Workload) -> str:
    """Return what makes a calibration smaller than the smallest of its :func:`alternatives`."""
    options = [] if workload.streaming else ["--model.streaming=true"]
    if workload.optimises:
        whole = not (workload.activation_checkpointing or workload.streaming)
        options += ["--model.activation_checkpointing=true"] if whole else []
        options.append("a method without optimisation (configs/methods/cdm.yaml)")
    elif workload.streaming:
        options.append("fewer search_pairs")
    return ", or ".join(options)

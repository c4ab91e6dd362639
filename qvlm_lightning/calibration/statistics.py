"""One full-precision pass over the calibration set: ranges of every site, and the sample for the
dependency.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from qvlm_lightning.errors import InputError
from qvlm_lightning.nn.distributed import gather_objects, world
from qvlm_lightning.nn.structure import Site, Structure
from qvlm_lightning.nn.taps import taps
from qvlm_lightning.quant.observers import Granularity, RangeObserver

Batch = dict[str, Tensor]
Progress = Callable[[str, int, int], None]

_GRANULARITY: dict[int, Granularity] = {0: "tensor", 1: "channel", 2: "position"}


def model_inputs(batch: Batch, device: torch.device) -> Batch:
    """Return what goes into ``model(**...)`` of a batch, on ``device``."""
    names = ("input_ids", "attention_mask", "pixel_values")
    return {name: batch[name].to(device) for name in names if name in batch}


def rows_and_mask(tower: str, batch: Batch) -> tuple[list[int], Tensor | None]:
    """Return which calibration samples a tower sees of a batch, and which tokens count ([B, T] bool
    or all).

    The vision tower and the projector see the samples that have an image, and all their tokens.
    """
    index = batch["sample_index"]
    if tower == "language":
        return index.tolist(), batch["attention_mask"].bool()
    return index[batch["has_image"]].tolist(), None


class Statistics:
    """Ranges of the full-precision activations of every site.

    Args:
        structure: the quantized model's structure; its quantizers are off during the pass.
        samples: number of calibration samples.
        seed: seed of the token reservoirs.
    """

    def __init__(self, structure: Structure, samples: int, seed: int) -> None:
        self.structure = structure
        self._ranges: dict[tuple[str, tuple[float, ...]], tuple[Tensor, Tensor]] = {}
        self.observers: dict[str, RangeObserver] = {
            site.name: RangeObserver(self._granularity(site), seed=seed, expected_samples=samples)
            for site in structure.sites
        }

    @staticmethod
    def _granularity(site: Site) -> Granularity:
        return _GRANULARITY[site.quantizer.low.dim()]

    @torch.no_grad()
    def collect(
        self, model: nn.Module, batches: Sequence[Batch], progress: Progress | None = None
    ) -> None:
        """Run the full-precision model over the batches; processes share them and merge exactly.

        Raises:
            InputError: an activation is NaN or infinite (names the layer).
        """
        rank, size = world()
        device = next(model.parameters()).device
        tower_of = {s.name: name for name, t in self.structure.towers.items() for s in t.sites}
        modules: dict[str, nn.Module] = {s.name: s.leader for s in self.structure.sites}
        failure: str | None = None
        with self.structure.only(set()):
            for count, batch in enumerate(batches):
                if count % size != rank or failure:
                    continue

                def see(name: str, x: Tensor, batch: Batch = batch) -> None:
                    rows, mask = rows_and_mask(tower_of[name], batch)
                    try:
                        self.observers[name].update(x, mask, rows)
                    except InputError as error:
                        raise InputError(f"calibration activations at {name}: {error}") from error

                try:
                    with taps(modules, see):
                        model(**model_inputs(batch, device))
                except InputError as error:
                    failure = str(error)
                if progress:
                    progress("statistics", count + 1, len(batches))
        self._merge(failure)

    def _merge(self, failure: str | None) -> None:
        """Merge over processes; all of them fail together, so that none waits for ever."""
        self._ranges.clear()
        states = gather_objects((failure, {n: o.state() for n, o in self.observers.items()}))
        for message, _ in states:
            if message:
                raise InputError(message)
        for name in self.observers:
            merged = RangeObserver.from_state(states[0][1][name])
            for _, other in states[1:]:
                merged.merge(RangeObserver.from_state(other[name]))
            self.observers[name] = merged

    def ranges(self, site: Site, percentiles: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return (low, high) candidates of a site, [P, *shape], on the quantizer's device.

        In mode ``dynamic_token`` they are the percentiles themselves: clip ratios on each token's
        absmax.
        """
        device = site.quantizer.low.device
        if site.quantizer.mode == "dynamic_token":
            ratio = torch.tensor(percentiles, dtype=torch.float32, device=device)
            return -ratio, ratio
        key = (site.name, tuple(percentiles))
        if key not in self._ranges:  # a quantile table costs a sort of the whole reservoir
            low, high = self.observers[site.name].ranges(percentiles)
            self._ranges[key] = low.to(device), high.to(device)
        return self._ranges[key]

    def channel_range(self, site: Site) -> tuple[Tensor, Tensor]:
        """Return the exact per-channel range [D] of a site, used for the codes of the
        dependency.
        """
        low, high = self.observers[site.name].channel_range()
        device = site.quantizer.low.device
        return low.to(device), high.to(device)

    def initialise(self) -> None:
        """Put every quantizer on its min-max range (A14)."""
        for site in self.structure.sites:
            low, high = self.ranges(site, [1.0])
            site.quantizer.set_range(low[0], high[0], 1.0)

"""A clock for the steps of a calibration, read by callbacks between its own."""

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from qvlm_lightning.estimate.sizes import in_gib
from qvlm_lightning.progress import say


class Laps:
    """Seconds and peak memory of every step of a run; a step that comes again is added.

    Args:
        device: where layers run.
        host_peak: returns the peak resident set so far, in bytes.

    Every step is said when it ends.

    Attributes:
        seconds: per step.
        device_bytes: largest sum of the tensors on the device, per step; empty without one.
        host_bytes: peak resident set at the end of the step.
    """

    def __init__(self, device: torch.device, host_peak: Callable[[], int]) -> None:
        self.device, self.host_peak = device, host_peak
        self.seconds: dict[str, float] = {}
        self.device_bytes: dict[str, int] = {}
        self.host_bytes: dict[str, int] = {}
        self._clock = time.perf_counter()

    def end(self, step: str) -> None:
        """Note that a step has ended.

        Args:
            step: its name.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
            self.device_bytes[step] = max(peak, self.device_bytes.get(step, 0))
            torch.cuda.reset_peak_memory_stats(self.device)
        now = time.perf_counter()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._clock
        peak_bytes = self.device_bytes.get(step)
        where = f", {in_gib(peak_bytes)} GiB on {self.device}" if peak_bytes else ""
        say(f"{step}: {now - self._clock:.1f} s{where}")
        self.host_bytes[step] = self.host_peak()
        self._clock = now

    def start(self) -> Callback:
        """Return a callback for the first place: opening, statistics, and what an epoch did."""
        return _Start(self)

    def behind(self, step: str) -> Callback:
        """Return a callback for the place behind another.

        Args:
            step: what that one does between epochs.
        """
        return _Behind(self, step)


class _Start(Callback):
    def __init__(self, laps: Laps) -> None:
        self.laps = laps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.laps.end("open")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.laps.end("optimisation" if trainer.current_epoch else "statistics")


class _Behind(Callback):
    def __init__(self, laps: Laps, step: str) -> None:
        self.laps, self.step = laps, step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.laps.end(self.step)

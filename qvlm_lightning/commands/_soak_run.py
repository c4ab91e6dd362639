"""One small calibration in a process of its own, for ``qvlm soak``."""

import json
import os
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from qvlm_lightning.commands._soak_faults import Fault, FaultyDisk

_ENDLESS = 900.0
_CALLBACKS = ("EntropyRepartition", "PercentileSearch", "ArtifactExport")
_POINT = {
    "class_path": "qvlm_lightning.callbacks.ResumePoint",
    "init_args": {"every_n_steps": 1},
}
CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "callbacks": [
            *({"class_path": f"qvlm_lightning.callbacks.{name}"} for name in _CALLBACKS),
            _POINT,
        ],
    },
    "model": {
        "class_path": "qvlm_lightning.calibration.VisualEncoderOptimization",
        "init_args": {
            "family": {"class_path": "qvlm_lightning.models.Tiny"},
            "method": {
                "class_path": "qvlm_lightning.methods.SequentialSearch",
                "init_args": {"percentiles": [1.0, 0.98]},
            },
            "epochs": 1,
            "entropy_samples": 256,
        },
    },
    "data": {
        "class_path": "qvlm_lightning.data.TinyVQA",
        "init_args": {
            "calibration_pairs": 4,
            "search_pairs": 2,
            "batch_size": 2,
            "evaluation_count": 20,
        },
    },
}
"""Of the run: search, optimisation, search again, export, a checkpoint per step."""


class SoakRun:
    """A run folder, and the processes that work in it one after another.

    Args:
        folder: the run folder; logs and traces lie beside it.
        tmpdir: ``$TMPDIR`` of its processes.
    """

    def __init__(self, folder: Path, tmpdir: Path) -> None:
        self.folder, self.tmpdir = folder, tmpdir
        self.log, self.trace = (folder.with_name(f"{folder.name}.{e}") for e in ("log", "trace"))
        self._process: Any = None

    def start(self, fault: Fault | None = None) -> None:
        """Start a process, which resumes what it finds."""
        context = get_context("forkserver")
        context.set_forkserver_preload(["qvlm_lightning.cli"])  # once, not per run
        for file in (self.log, self.trace):
            file.unlink(missing_ok=True)
        self.tmpdir.mkdir(parents=True, exist_ok=True)
        self._process = context.Process(
            target=_calibrate, args=(self.folder, self.tmpdir, self.log, self.trace, fault)
        )
        self._process.start()

    @property
    def running(self) -> bool:
        """Whether the process is."""
        return bool(self._process.is_alive())

    def send(self, signum: int) -> None:
        """Send the process a signal."""
        if self.running:
            os.kill(self._process.pid, signum)

    def wait(self, seconds: float = _ENDLESS) -> int | None:
        """Return the exit code; None if the process did not end in time, and had to be killed."""
        self._process.join(seconds)
        return None if self.end() else int(self._process.exitcode)

    def end(self) -> bool:
        """Kill the process if it runs; say whether it did."""
        if running := self.running:
            self._process.kill()
            self._process.join()
        return running

    def operations(self) -> list[dict[str, Any]]:
        """Return what the last process did to its files."""
        if not self.trace.is_file():
            return []
        return [json.loads(line) for line in self.trace.read_text().splitlines()]


def _calibrate(folder: Path, tmpdir: Path, log: Path, trace: Path, fault: Fault | None) -> None:
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(number, standard)
    os.environ["TMPDIR"], tempfile.tempdir = str(tmpdir), None
    from tqdm import tqdm

    from qvlm_lightning.cli import train_main

    tqdm.set_lock(threading.RLock())  # its own is one of processes: whoever is killed leaks it
    if fault is not None:
        FaultyDisk([folder, tmpdir], fault, trace).install()
    config = folder.with_name("soak.json")
    resume = ["--ckpt_path=last"] if (folder / "config.yaml").is_file() else []
    train_main(["fit", f"--config={config}", f"--trainer.default_root_dir={folder}", *resume])
    print(f"cpu seconds: {time.process_time():.1f}", file=sys.stderr)

"""The processes of one run: they end together, and agree with what a scheduler says of them."""

import os
import signal
import subprocess
import threading
import time
import weakref
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from qvlm_lightning.errors import InputError
from qvlm_lightning.stopping import command_line, follows, present_handler, say

_POLL = 0.5
_PATIENCE = 3.0
"""Seconds in which a process that lost another is ended by the watch, before it says so itself."""


class RankWatch(Callback):
    """Ends all processes that rank 0 started when one of them dies, and passes signals on.

    torchrun and srun do the same for the processes that they start.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._parent = os.getppid()
        self._watching = False
        self.handler = present_handler()
        if self.handler is not None:
            self.handler.hooks.append(weakref.WeakMethod(self._signalled))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the watch, once."""
        if not self._watching and (self._children() or follows()):
            self._watching = True
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM back: Lightning's handler waits for the other ranks, which may wait too."""
        if self.handler is not None:
            self.handler.install()

    on_test_start = on_train_start

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave it to the watch to say that another process is gone."""
        if trainer.world_size > 1 and isinstance(exception, RuntimeError):
            time.sleep(2 * _PATIENCE)
        for child in self._children():
            child.terminate()  # it waits for the end of this process, and says nothing

    def _children(self) -> list[subprocess.Popen]:
        return list(getattr(self._trainer.strategy.launcher, "procs", []))

    def _signalled(self, signum: int) -> None:
        for child in self._children():
            child.send_signal(signum)
        environment = self._trainer._accelerator_connector.cluster_environment
        if (
            isinstance(environment, SLURMEnvironment)
            and environment.auto_requeue
            and signum == environment.requeue_signal
            and self._trainer.is_global_zero
        ):
            requeue()

    def _watch(self) -> None:
        while True:
            time.sleep(_POLL)
            if follows():
                if os.getppid() != self._parent:
                    self._orphaned()
                continue
            children = self._children()
            dead = {rank: child.poll() for rank, child in enumerate(children, start=1)}
            for rank, code in dead.items():
                if code and not self._stopping():
                    self._end(f"rank {rank} of this run died ({_how(code)})", code, children)

    def _stopping(self) -> bool:
        return self.handler is not None and self.handler.first is not None

    def _orphaned(self) -> None:
        time.sleep(0 if self._stopping() else _PATIENCE)  # both may be at their end
        if os.environ["LOCAL_RANK"] == "1" and not self._stopping():
            self._say("rank 0 of this run died")
        os._exit(1)

    def _end(self, what: str, code: int, children: list[subprocess.Popen]) -> None:
        self._say(what)
        for child in children:
            child.kill()
        os._exit(code if code > 0 else 128 - code)

    def _say(self, what: str) -> None:
        again = command_line() if self.handler is None else self.handler.again()
        say(f"\nerror: {what}; the other ranks are stopped; go on with: {again}")


def _how(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


def requeue() -> None:
    """Ask SLURM to put this job into its queue again; the same command then goes on."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=5, check=False
        )
        reason = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as fault:
        reason = str(fault)
    said = "is put into the queue again" if not reason else f"could not be queued again: {reason}"
    say(f"SLURM job {job} {said}")


def requeued() -> bool:
    """Say whether SLURM started this job again, so that its first command means: go on."""
    return (os.environ.get("SLURM_RESTART_COUNT") or "0") != "0"


def check_scheduler(trainer: Any) -> None:
    """Compare what torchrun or SLURM started with what the Trainer is told.

    Args:
        trainer: its options: devices, num_nodes, plugins.

    Raises:
        InputError: they started other processes, or SLURM's variables are incomplete.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # within a job of SLURM, too
        _check_torchrun(_count(trainer["devices"], trainer["accelerator"]), trainer["num_nodes"])
        return
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_NTASKS" not in os.environ or interactive or _other_environment(trainer["plugins"]):
        return
    tasks, nodes = _slurm("SLURM_NTASKS"), _slurm("SLURM_NNODES", 1)
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        _slurm(name)
    per_node = _slurm("SLURM_NTASKS_PER_NODE", None if tasks > 1 else 1)
    devices = _count(trainer["devices"], trainer["accelerator"])
    if (per_node, nodes) != (devices, trainer["num_nodes"]) or tasks != per_node * nodes:
        raise InputError(
            f"SLURM started {tasks} tasks, {per_node} per node on {nodes} nodes, but "
            f"trainer.devices is {devices} and trainer.num_nodes is {trainer['num_nodes']}; give "
            f"--trainer.devices {per_node} --trainer.num_nodes {nodes}, or start as many tasks as "
            "there are devices (srun --ntasks-per-node)"
        )


def _check_torchrun(devices: int, nodes: int) -> None:
    everywhere, here = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if (here, everywhere) != (devices, devices * nodes):
        raise InputError(
            f"torchrun started {everywhere} processes, {here} of them here, but trainer.devices is "
            f"{devices} and trainer.num_nodes is {nodes}; give --trainer.devices {here} "
            f"--trainer.num_nodes {everywhere // here}, or another torchrun --nproc-per-node"
        )


def _slurm(name: str, default: int | None = None) -> int:
    value = os.environ.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.isdecimal():
        raise InputError(
            f"SLURM_NTASKS is set, but {name} is {value!r}; start the program with srun "
            "--ntasks-per-node=N, or unset SLURM_NTASKS"
        )
    return int(value)


def _count(devices: Any, accelerator: str) -> int:
    """Return how many devices the Trainer takes on each node."""
    text = str(devices).strip()
    if isinstance(devices, list):
        return len(devices)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    if text in ("auto", "-1"):
        return torch.cuda.device_count() if accelerator in ("cuda", "gpu") else 1
    return int(text)


def _other_environment(plugins: Any) -> bool:
    """Say whether the configuration names another environment than SLURM's."""
    listed = plugins if isinstance(plugins, list) else [plugins]
    names = [str(p.get("class_path", "")) if hasattr(p, "get") else str(p) for p in listed]
    return any(n.endswith("Environment") and "SLURM" not in n for n in names)

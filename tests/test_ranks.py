"""The processes of a run end together, and a scheduler's count is compared with the Trainer's."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

import qvlm_lightning.ranks as ranks
from qvlm_lightning.errors import InputError
from qvlm_lightning.ranks import RankWatch, check_scheduler, requeue, requeued
from qvlm_lightning.stopping import present_handler, stoppable

TRAINER = {"devices": 1, "num_nodes": 1, "plugins": None, "accelerator": "cpu"}
ONE = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
FOUR = ONE | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "1"}


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("SLURM_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


def checked(monkeypatch, variables: dict[str, str], **trainer: object) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_scheduler(TRAINER | trainer)


@pytest.mark.parametrize(
    ("variables", "trainer"),
    [
        ({}, {"devices": 8}),
        (ONE, {}),
        (ONE, {"devices": "auto"}),
        (FOUR, {"devices": 4}),
        (FOUR, {"devices": "0,1,2,3"}),
        (FOUR | {"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, {"devices": 4, "num_nodes": 2}),
        (FOUR | {"SLURM_JOB_NAME": "bash"}, {}),
        (FOUR, {"plugins": [{"class_path": "lightning.fabric.plugins.LightningEnvironment"}]}),
        (TORCHRUN, {"devices": 2, "num_nodes": 2}),
        (ONE | TORCHRUN, {"devices": 2, "num_nodes": 2}),
    ],
)
def test_what_fits_passes(monkeypatch, variables, trainer):
    checked(monkeypatch, variables, **trainer)


@pytest.mark.parametrize(
    ("variables", "trainer", "words"),
    [
        (FOUR, {}, "4 tasks, 4 per node on 1 nodes, but trainer.devices is 1"),
        (ONE, {"devices": 2}, "trainer.devices is 2"),
        (FOUR, {"devices": [0, 1]}, "trainer.devices is 2"),
        (FOUR | {"SLURM_NNODES": "2", "SLURM_NTASKS": "8"}, {"devices": 4}, "num_nodes is 1"),
        ({"SLURM_NTASKS": "4"} | ONE | {"SLURM_NTASKS": "4"}, {"devices": 4}, "NTASKS_PER_NODE"),
        ({"SLURM_NTASKS": "1"}, {}, "SLURM_PROCID is None"),
        (ONE | {"SLURM_NTASKS": "many"}, {}, "SLURM_NTASKS is 'many'"),
        (FOUR | {"SLURM_NTASKS_PER_NODE": "2(x2)"}, {"devices": 4}, "'2(x2)'"),
        (TORCHRUN, {}, "give --trainer.devices 2 --trainer.num_nodes 2"),
        (TORCHRUN, {"devices": 2}, "4 processes, 2 of them here"),
        (TORCHRUN, {"devices": 4}, "trainer.devices is 4 and trainer.num_nodes is 1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(monkeypatch, variables, trainer, words):
    with pytest.raises(InputError, match=re.escape(words)):
        checked(monkeypatch, variables, **trainer)


def test_both_programs_ask(monkeypatch, tmp_path, capsys):
    from qvlm_lightning.cli import train_main
    from qvlm_lightning.evaluation.cli import eval_main

    configs = Path(__file__).parents[1] / "configs"
    for name, value in FOUR.items():
        monkeypatch.setenv(name, value)
    for program, given in (
        (train_main, ["fit", f"--config={configs / 'demo.yaml'}"]),
        (eval_main, [f"--config={configs / 'eval' / 'tiny.yaml'}"]),
    ):
        with pytest.raises(SystemExit) as end:
            program([*given, f"--trainer.default_root_dir={tmp_path / 'run'}"])
        assert end.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: SLURM started 4 tasks")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A stand-in for SLURM's program, which notes what it is asked."""
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return tmp_path / "asked"


def test_a_job_is_put_into_the_queue_again(scontrol, monkeypatch, capsys):
    requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "20")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    requeue()
    assert scontrol.read_text() == "requeue 17\nrequeue 20_3\n"
    assert "SLURM job 20_3 is put into the queue again" in capsys.readouterr().err


def test_without_slurms_program_the_reason_is_said(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    requeue()
    assert "could not be queued again" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "again"), [(None, False), ("0", False), ("2", True)])
def test_a_second_start_goes_on(monkeypatch, value, again):
    if value is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", value)
    assert requeued() == again


def watch(*children: subprocess.Popen, environment: object = None, first: bool = True):
    connector = SimpleNamespace(cluster_environment=environment)
    launcher = SimpleNamespace(procs=list(children))
    strategy = SimpleNamespace(launcher=launcher)
    return RankWatch(
        SimpleNamespace(strategy=strategy, _accelerator_connector=connector, is_global_zero=first)
    )


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_a_signal_is_passed_on(child):
    watch(child)._signalled(signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("signum", "options", "first", "asked"),
    [
        (signal.SIGUSR1, {}, True, True),
        (signal.SIGUSR1, {}, False, False),
        (signal.SIGTERM, {}, True, False),
        (signal.SIGUSR1, {"auto_requeue": False}, True, False),
        (signal.SIGUSR2, {"requeue_signal": signal.SIGUSR2}, True, True),
    ],
)
def test_slurms_signal_requeues_as_the_plugin_says(scontrol, signum, options, first, asked):
    watch(environment=SLURMEnvironment(**options), first=first)._signalled(signum)
    assert scontrol.exists() == asked


def test_a_rank_that_dies_takes_the_others_down(child, monkeypatch, capsys):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ended: list[int] = []

    def leave(code: int) -> None:
        ended.append(code)
        raise SystemExit

    monkeypatch.setattr(ranks.os, "_exit", leave)
    child.kill()
    began = time.monotonic()
    with pytest.raises(SystemExit):
        watch(other, child)._watch()
    assert other.wait(10) == -signal.SIGKILL
    assert ended == [128 + signal.SIGKILL]
    assert time.monotonic() - began < 30
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: rank 2 of this run died (SIGKILL); the other ranks are stopped")
    assert "\n" not in said


def test_a_watch_lets_its_trainer_go():
    """A table makes one trainer after another below one handler of signals; each has a model."""
    with stoppable():
        trainer = Mock()
        told = weakref.ref(trainer)
        watch = RankWatch(trainer)
        assert [hook() for hook in present_handler().hooks] == [watch._signalled]
        del watch, trainer
        gc.collect()
        assert told() is None


def test_a_handler_lets_what_it_tells_go():
    """What is registered for forks stays until the end of the process."""

    class Told:
        def again(self) -> str:
            return "the command"

    said = Told()
    told = weakref.ref(said)
    with stoppable(said.again):
        pass
    del said
    gc.collect()
    assert told() is None

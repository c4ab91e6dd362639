"""A program ends soon after a signal, says how to go on, and returns 128 + the signal's number."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qvlm_lightning.exits import user_faults
from qvlm_lightning.stopping import SIGNALS, Stopped, command_line, present_handler, stoppable

ROOT = Path(__file__).parents[1]
WAITING = "while True: time.sleep(0.01)"
STUCK = "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)"  # runs no Python until it is done
DEAF = """
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass
"""
PROGRAM = """
import hashlib, os, sys, time
import qvlm_lightning.stopping as stopping
from qvlm_lightning.exits import user_faults
stopping.GRACE, stopping._SAME = {grace}, {same}
with user_faults(lambda: "make it again"):
    print("ready", flush=True)
    {work}
"""


@pytest.fixture
def program():
    """Start a program that works until it is stopped; it has begun to work."""
    started = []

    def start(
        work: str, grace: float = 30.0, same: float = 0.2, **environment: str
    ) -> subprocess.Popen:
        code = PROGRAM.format(work=work, grace=grace, same=same)
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            cwd=ROOT,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)  # it has said so, now it begins
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen, signum: int) -> tuple[int, str, float]:
    """Send a signal; return exit code, what was said, and the seconds it took."""
    began = time.monotonic()
    process.send_signal(signum)
    _, said = process.communicate(timeout=20)
    return process.returncode, said.strip(), time.monotonic() - began


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda s: s.name)
def test_every_signal_is_one_sentence_and_its_exit_code(program, signum):
    code, said, seconds = end(program(WAITING), signum)
    assert code == 128 + signum
    assert said == f"stopped by {signum.name}; go on with: make it again"
    assert seconds < 10


@pytest.mark.parametrize("work", [STUCK, DEAF], ids=["stuck", "deaf"])
def test_a_main_thread_that_does_not_get_out_is_ended(program, work):
    code, said, seconds = end(program(work, grace=1.0), signal.SIGTERM)
    assert code == 143
    assert said == "stopped by SIGTERM; go on with: make it again"
    assert 0.9 < seconds < 10


def test_a_second_signal_ends_at_once(program):
    process = program(DEAF)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    code, said, seconds = end(process, signal.SIGINT)
    assert code == 143  # of the first
    assert said.count("stopped by SIGTERM") == 1
    assert seconds < 5


def test_the_same_signal_twice_in_a_moment_is_one(program):
    """coreutils' ``timeout`` signals the process, then its group."""
    tidy = """
    try:
        while True: time.sleep(0.01)
    finally:
        time.sleep(1.5)
        print("tidied up", flush=True)
"""
    process = program(tidy, same=20.0)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (143, "tidied up\n")


def test_a_signal_that_is_ignored_stays_ignored():
    """As in the background of a shell, or under nohup."""
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += PROGRAM.format(work="time.sleep(1); print('whole')", grace=5, same=0.2)
    ignoring = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert ignoring.stdout.readline() == "ready\n"
    ignoring.send_signal(signal.SIGINT)
    assert ignoring.communicate(timeout=20)[0] == "whole\n"
    assert ignoring.returncode == 0


def test_a_fork_does_not_stop_its_parent(program):
    """Workers of data loaders get SIGTERM when they are no longer needed."""
    work = """
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    time.sleep(0.2)
    os.kill(child, 15)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    time.sleep(1)
"""
    process = program(work, grace=0.2)
    output, said = process.communicate(timeout=20)
    assert (output, process.returncode, said) == ("-15\n", 0, "")


def test_a_process_that_follows_another_waits_for_it(program):
    """Rank 0 is told, and the others end when it is gone."""
    process = program(WAITING, grace=1.5, LOCAL_RANK="1")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    assert process.poll() is None
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert said == ""


def test_a_signal_while_files_are_written_leaves_the_old_ones(tmp_path, capsys):
    from qvlm_lightning.files import write_whole, writing

    def program() -> None:
        with user_faults(lambda: "again"), writing(tmp_path / "a") as scratch:
            scratch.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    write_whole(tmp_path / "a", "old")
    with pytest.raises(SystemExit) as stopped:
        program()
    assert stopped.value.code == 143
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
    assert "stopped by SIGTERM; go on with: again" in capsys.readouterr().err


def test_inside_another_program_only_the_sentence_changes(capsys):
    def program() -> None:
        with user_faults(lambda: "outer"):
            handler = present_handler()
            with user_faults(lambda: "inner"):
                assert present_handler() is handler
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)

    with pytest.raises(SystemExit) as stopped:
        program()
    assert stopped.value.code == 130
    assert "inner" in capsys.readouterr().err
    assert present_handler() is None


def test_a_program_gives_the_signals_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stoppable():
        assert present_handler() is not None
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_other_threads_are_left_alone():
    """Python hands signals to the main thread only."""
    seen = []

    def run() -> None:
        with stoppable():
            seen.append(present_handler())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None]


def test_no_handler_of_exceptions_takes_it_for_an_error():
    assert not issubclass(Stopped, Exception)
    assert Stopped(15).signum == 15


@pytest.mark.parametrize("given", [["train.py", "fit", "--a=b c"], ["train.py", "another"]])
def test_below_torchrun_its_command_goes_on(monkeypatch, given):
    """The parent of a process that torchrun started is torchrun; of another nothing is known."""
    said = "print('up', flush=True); input()"
    torchrun = [sys.executable, "-c", said, "--nproc-per-node", "2", *given]
    worker = [sys.executable, "-u", "train.py", "fit", "--a=b c"]
    monkeypatch.setattr(sys, "argv", worker[2:])
    monkeypatch.setattr(sys, "orig_argv", worker)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(torchrun, **pipes) as parent:
        assert parent.stdout.readline() == b"up\n"
        monkeypatch.setattr(os, "getppid", lambda: parent.pid)
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        assert command_line() == shlex.join(worker)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
        assert command_line() == shlex.join(torchrun if given == worker[2:] else worker)
        parent.kill()

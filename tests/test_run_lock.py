"""One process per run folder; what a dead one left is taken over, what another host left is not."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qvlm_lightning.errors import InputError
from qvlm_lightning.run_lock import LOCK, run_lock

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from qvlm_lightning.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the run folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def take(folder: Path) -> dict[str, object]:
    with run_lock(folder):
        return json.loads((folder / LOCK).read_text())


ME = {"host": socket.gethostname(), "pid": os.getpid()}


def test_the_file_names_host_and_process_and_goes_with_the_run(tmp_path):
    (tmp_path / "run").mkdir()
    assert take(tmp_path / "run") == ME
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_of_which_nothing_came_is_removed_again(tmp_path):
    assert take(tmp_path / "new" / "run") == ME
    assert list(tmp_path.iterdir()) == []
    with run_lock(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "a").touch()
    assert [p.name for p in (tmp_path / "new" / "run").iterdir()] == ["a"]


def test_a_second_process_is_refused(tmp_path, holder):
    with pytest.raises(InputError) as fault:
        take(tmp_path / "run")
    words = (repr(str(tmp_path / "run")), f"process {holder.pid}", socket.gethostname())
    assert all(word in str(fault.value) for word in words)
    holder.communicate("")  # its end
    assert take(tmp_path / "run") == ME


def test_what_a_killed_process_left_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == holder.pid
    assert take(tmp_path / "run") == ME


def test_the_same_process_may_take_it_again(tmp_path):
    """A table calibrates in its own folder."""
    with run_lock(tmp_path):
        assert take(tmp_path) == ME
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_what_another_host_left_is_refused(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": "node7", "pid": 1}))
    with pytest.raises(InputError, match="node7") as fault:
        take(tmp_path)
    assert f"delete {str(tmp_path / LOCK)!r}" in str(fault.value)
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_what_was_cut_off_is_taken_over(tmp_path, content: str):
    (tmp_path / LOCK).write_text(content)
    assert take(tmp_path) == ME


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write into"):
        take(tmp_path / "file" / "run")

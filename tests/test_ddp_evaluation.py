"""Several processes share an evaluation, and one that is killed goes on: the very same files."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qvlm_lightning.evaluation.cli import eval_main

pytestmark = pytest.mark.timeout(600)

COUNT = 40
# 128 per batch makes two batches: of three processes the last one has none
OPTIONS = ["--config=configs/eval/tiny.yaml", "--trainer.accelerator=cpu", "--controls=false",
           "--trainer.enable_progress_bar=false", f"--data.evaluation_count={COUNT}"]  # fmt: skip

DRIVER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from qvlm_lightning.evaluation.cli import eval_main
from qvlm_lightning.evaluation.journal import Record

rank, left, *args = sys.argv[1:]
left = [int(left)]
add = Record.add

def die(self, *given):
    left[0] -= 1
    if left[0] < 0 and os.environ.get("LOCAL_RANK", "0") == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, *given)

Record.add = die
eval_main(args)
"""


def command(root: Path, processes: int, size: int) -> list[str]:
    options = [*OPTIONS, f"--trainer.default_root_dir={root}"]
    options.append(f"--data.evaluation_batch_size={size}")
    if processes > 1:
        options += ["--trainer.strategy=ddp", f"--trainer.devices={processes}"]
    return options


def run(program: list[str], root: Path, processes: int, size: int) -> int:
    """Run a program in processes of its own."""
    # the same number of threads: a matrix product split otherwise rounds otherwise
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *program, *command(root, processes, size)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def files(root: Path) -> dict[str, object]:
    """Everything that an evaluation left, without wall times."""
    found: dict[str, object] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        name = str(path.relative_to(root))
        found[name] = path.read_bytes()
        if path.name == "results.json":
            lists = json.loads(path.read_text()).values()
            found[name] = [row for rows in lists for row in rows if row["metric"] != "seconds"]
        elif path.name == "fp-k1.json":
            found[name] = json.loads(path.read_text()) | {"seconds": 0}
        elif path.parent == root:
            del found[name]  # for people, with wall times; or the configuration
    assert "predictions/fp-k1.safetensors" in found
    return found


@pytest.fixture
def dying(tmp_path_factory):
    """The program, but its main process kills itself after some batches."""
    path = tmp_path_factory.mktemp("driver") / "eval.py"  # a file: Lightning starts it again
    path.write_text(DRIVER, encoding="utf-8")
    return lambda batches: [str(path), "0", str(batches)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process leaves, by batch size."""
    made: dict[int, dict[str, object]] = {}

    def leave(size: int) -> dict[str, object]:
        if size not in made:
            root = tmp_path_factory.mktemp(f"alone{size}")
            eval_main(command(root, 1, size))
            made[size] = files(root)
        return made[size]

    return leave


@pytest.mark.parametrize(
    ("processes", "size"),
    [pytest.param(3, 128, marks=pytest.mark.slow), pytest.param(2, 8, marks=pytest.mark.slow)],
)
def test_processes_share_the_questions(alone, tmp_path, processes, size):
    assert run(["eval.py"], tmp_path, processes, size) == 0
    assert files(tmp_path) == alone(size)


def left(root: Path) -> set[str]:
    lines = [x for p in root.rglob("*.partial/*.jsonl") for x in p.read_text().splitlines()]
    return {json.loads(line)["id"] for line in lines}


def test_a_killed_evaluation_goes_on(alone, dying, tmp_path):
    assert run(dying(3), tmp_path, 1, 8) == -signal.SIGKILL
    assert 0 < len(left(tmp_path)) < COUNT
    eval_main(command(tmp_path, 1, 8))
    assert files(tmp_path) == alone(8)


@pytest.mark.slow
def test_a_killed_evaluation_of_two_processes_goes_on_with_three(alone, dying, tmp_path):
    assert run(dying(2), tmp_path, 2, 4) == -signal.SIGKILL
    before = left(tmp_path)
    assert 0 < len(before) < COUNT
    assert run(dying(0), tmp_path, 3, 4) == -signal.SIGKILL
    assert before <= left(tmp_path)
    assert run(["eval.py"], tmp_path, 3, 4) == 0
    assert files(tmp_path) == alone(4)

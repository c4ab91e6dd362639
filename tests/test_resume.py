"""X3 and V7: a run that is killed anywhere and resumed ends with the very same files."""

import hashlib
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)

DRIVER = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import qvlm_lightning.callbacks.artifact_export as export
from qvlm_lightning.calibration import VisualEncoderOptimization
from qvlm_lightning.callbacks import ResumePoint
from qvlm_lightning.cli import train_main
from qvlm_lightning.methods import JointSearch

where, count, *args = sys.argv[1:]
left = [int(count)]

def die_in(owner, name):
    original = getattr(owner, name)
    def wrapper(*a, **k):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*a, **k)
    setattr(owner, name, wrapper)

places = {"step": (VisualEncoderOptimization, "loss_terms"), "block": (JointSearch, "solve"),
          "measure": (VisualEncoderOptimization, "_measure"), "export": (export, "save_artifact"),
          "checkpoint": (ResumePoint, "_save")}
if where in places:
    die_in(*places[where])
train_main(args)
"""

CONFIG = [
    "fit", "--config=configs/base.yaml", "--config=configs/methods/qvlm.yaml",
    "--config=configs/schemes/w4a4.yaml",
    "--config=configs/models/tiny.yaml", "--data=TinyVQA", "--model.epochs=3",
    "--model.entropy_samples=1024", "--data.calibration_pairs=12", "--data.search_pairs=4",
    "--data.batch_size=4",
    "--model.method.percentiles=[1.0, 0.99, 0.98]",
    "--trainer.accelerator=cpu",
]  # fmt: skip

# 3 epochs of 3 steps; two searches of 8 blocks or more, then 4 or more in the final pass
POINTS = [("block", 0), ("block", 2), ("step", 0), ("step", 2), ("step", 3), ("step", 5),
          ("step", 8), ("block", 10), ("export", 0), ("checkpoint", 3)]  # fmt: skip
# the measurement behind the second epoch, and the one behind the final pass
MEASUREMENTS = [("measure", 2), ("measure", 4)]


def often(root: Path) -> Path:
    """A file that asks for more checkpoints; beside the run folder, which must be fresh."""
    path = root.with_name(f"{root.name}.yaml")
    point = "{class_path: qvlm_lightning.callbacks.ResumePoint, init_args: {every_n_steps: 2}}"
    path.write_text(f"trainer:\n  callbacks+:\n    - {point}\n")
    return path


def run(root: Path, where: str = "", count: int = 0, resume: bool = False) -> int:
    command = [
        sys.executable,
        "-c",
        DRIVER,
        where,
        str(count),
        *CONFIG,
        f"--config={often(root)}",
        f"--trainer.default_root_dir={root}",
    ]
    if resume:
        command.append("--ckpt_path=last")
    checkpoint = (root / "checkpoints" / "last.ckpt").is_file()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    if resume:
        assert ("Restoring states from the checkpoint" in done.stderr) == checkpoint
    return done.returncode


def result(root: Path) -> dict[str, object]:
    """Return what a run decided: hashes of the tensors, and the report without wall times."""
    report = json.loads((root / "report.json").read_text())
    for spent in (report["search"], *report["search"]["passes"]):
        assert spent.pop("seconds") > 0
    assert report.pop("spent")["search"]["seconds"] > 0
    files = ("weights.packed", "quantizers.safetensors")
    return report | {
        f: hashlib.sha256((root / "artifact" / f).read_bytes()).hexdigest() for f in files
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    assert run(root) == 0
    return result(root)


def test_the_whole_set_is_measured_before_between_and_after(undisturbed):
    moments = [(m["epoch"], m["after"]) for m in undisturbed["loss_fixed"]]
    assert moments == [(0, "search"), *((n, "training") for n in (1, 2, 3)), (3, "search")]


@pytest.mark.slow
def test_x3_the_same_seed_gives_the_same_files(undisturbed, tmp_path):
    assert run(tmp_path) == 0
    assert result(tmp_path) == undisturbed


def chosen() -> list[tuple[str, int]]:
    """Points for every run of the tests, drawn once; the others are slow."""
    return random.Random(7).sample(POINTS, 1)


@pytest.mark.parametrize(
    ("where", "count"),
    [
        p if p in chosen() else pytest.param(*p, marks=pytest.mark.slow)
        for p in POINTS + MEASUREMENTS
    ],
)
def test_v7_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path, where, count):
    assert run(tmp_path, where, count) == -signal.SIGKILL
    assert run(tmp_path, resume=True) == 0
    assert result(tmp_path) == undisturbed


@pytest.mark.slow
def test_v7_killed_twice_and_resumed(undisturbed, tmp_path):
    assert run(tmp_path, "block", 3) == -signal.SIGKILL
    assert run(tmp_path, "step", 4, resume=True) == -signal.SIGKILL
    assert run(tmp_path, resume=True) == 0
    assert result(tmp_path) == undisturbed

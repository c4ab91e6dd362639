"""A method that changes weights, killed anywhere and resumed, ends with the very same files."""

import hashlib
import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.methods.conftest import printed

pytestmark = pytest.mark.timeout(600)

DRIVER = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.methods.conftest import load
method = load(Path(sys.argv[1]) / "naive_gptq.py").NaiveGPTQ
import qvlm_lightning.callbacks.artifact_export as export
from qvlm_lightning.calibration.decisions import Decisions
from qvlm_lightning.callbacks import ResumePoint
from qvlm_lightning.cli import train_main

where, count, *args = sys.argv[2:]
left = [int(count)]

def die_in(owner, name):
    original = getattr(owner, name)
    def wrapper(*a, **k):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*a, **k)
    setattr(owner, name, wrapper)

places = {"block": (method, "solve"), "write": (Decisions, "write"),
          "checkpoint": (ResumePoint, "_save"), "export": (export, "save_artifact")}
if where in places:
    die_in(*places[where])
train_main(args)
"""

CONFIG = [
    "fit", "--config=configs/base.yaml", "--config=configs/schemes/w4a4.yaml",
    "--config=configs/models/tiny.yaml", "--data=TinyVQA", "--data.calibration_pairs=8",
    "--data.search_pairs=4", "--data.batch_size=4", "--trainer.accelerator=cpu",
]  # fmt: skip

PLACES = [*(("block", n) for n in range(12)), *(("write", n) for n in range(12)),
          ("checkpoint", 0), ("export", 0)]  # fmt: skip
"""12 blocks: 5 of the tower, the projector, 6 of the decoder."""


def run(root: Path, where: str = "", count: int = 0, resume: bool = False) -> int:
    scratch = root.with_name(f"{root.name}-method")
    scratch.mkdir(exist_ok=True)
    (scratch / "naive_gptq.yaml").write_text(printed("yaml"), encoding="utf-8")
    command = [sys.executable, "-c", DRIVER, str(scratch), where, str(count), *CONFIG]
    command += [
        f"--config={scratch / 'naive_gptq.yaml'}",
        f"--trainer.default_root_dir={root}",
        *(["--ckpt_path=last"] if resume else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def result(root: Path) -> dict[str, object]:
    """Return the report without wall times, and hashes of everything in the artifact."""
    report = json.loads((root / "report.json").read_text())
    for spent in (report["search"], *report["search"]["passes"]):
        assert spent.pop("seconds") > 0
    assert report.pop("spent")["search"]["seconds"] > 0
    files = sorted(p for p in (root / "artifact").rglob("*") if p.is_file())
    return report | {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert run(root) == 0
    return result(root)


MOMENTS = random.Random(11).sample(PLACES, 10)


@pytest.mark.parametrize(
    ("where", "count"),
    [m if n < 1 else pytest.param(*m, marks=pytest.mark.slow) for n, m in enumerate(MOMENTS)],
)
def test_killed_and_resumed_equals_undisturbed(undisturbed, tmp_path, where, count):
    root = tmp_path / "run"
    assert run(root, where, count) == -signal.SIGKILL
    assert run(root, resume=True) == 0
    assert result(root) == undisturbed

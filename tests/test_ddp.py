"""Two processes on the CPU decide what one process decides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(600)

COMMON = [
    "fit", "--config=configs/base.yaml", "--config=configs/schemes/w4a4.yaml",
    "--config=configs/models/tiny.yaml",
    "--data=TinyVQA", "--data.calibration_pairs=16", "--data.search_pairs=8", "--data.batch_size=4",
    "--trainer.accelerator=cpu",
]  # fmt: skip


def run(root: Path, method: str, processes: int, *extra: str) -> Path:
    command = [
        sys.executable, "train.py", *COMMON, f"--config=configs/methods/{method}.yaml",
        f"--trainer.default_root_dir={root}", *extra,
    ]  # fmt: skip
    if processes > 1:
        command += ["--trainer.strategy=ddp", f"--trainer.devices={processes}"]
    # the same number of threads: a matrix product split otherwise rounds otherwise
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def report(root: Path) -> dict[str, object]:
    return json.loads((root / "report.json").read_text())


@pytest.mark.parametrize("method", ["cdm", pytest.param("sequential", marks=pytest.mark.slow)])
def test_gradient_free_methods_are_identical_on_two_processes(tmp_path, method):
    one = run(tmp_path / "one", method, 1)
    two = run(tmp_path / "two", method, 2)
    for key in ("dependency", "threshold", "partition", "percentiles", "objective", "quantized"):
        assert report(one)[key] == report(two)[key], key
    assert report(one)["search"]["layer_forwards"] > 0
    for file in ("quantizers.safetensors", "model.safetensors"):
        assert (one / "artifact" / file).read_bytes() == (two / "artifact" / file).read_bytes()


def learned(root: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(root / "artifact" / "quantizers.safetensors")
    return {name: x for name, x in tensors.items() if name.endswith("_ratio")}


# Sums over a batch are rounded in another order. That moves gradients by 1e-6 of their size until,
# for
# the first time, an activation falls on the other side of a rounding boundary; from there on the
# runs
# differ as two runs do that differ by one code.
@pytest.mark.parametrize(
    ("epochs", "loss", "ratio"),
    [(1, 1e-5, 1e-4), pytest.param(2, 1e-2, 1e-2, marks=pytest.mark.slow)],
)
def test_learned_bounds_agree_on_two_processes(tmp_path, epochs, loss, ratio):
    extra = (f"--model.epochs={epochs}", "--model.entropy_samples=2048")
    one, two = (run(tmp_path / str(n), "veo", n, *extra) for n in (1, 2))
    for a, b in zip(report(one)["loss"], report(two)["loss"], strict=True):
        assert b == pytest.approx(a, rel=loss)
    a, b = learned(one), learned(two)
    assert a.keys() == b.keys()
    assert any(not x.eq(1).all() for x in a.values())
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < ratio


@pytest.mark.slow
def test_a_process_without_an_image_takes_part(tmp_path):
    """Of three processes, the second gets only a text question of the last batch."""
    extra = ("--model.epochs=1", "--model.entropy_samples=512", "--data.calibration_pairs=12")
    one, three = (run(tmp_path / str(n), "veo", n, *extra) for n in (1, 3))
    assert report(three)["loss"][0] == pytest.approx(report(one)["loss"][0], rel=1e-5)

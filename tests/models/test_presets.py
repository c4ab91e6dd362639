"""The presets for large models calibrate small ones of the same kind, as they are written."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from PIL import Image

from qvlm_lightning.artifact import load_artifact
from qvlm_lightning.cli import train_main

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted((CONFIGS / "presets").glob("*.yaml"))
KINDS = {"llava_1_5_7b": "llava", "llava_1_5_13b": "llava", "qwen2_5_vl_7b": "qwen2_5_vl"}


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Eight questions about pictures."""
    rows = []
    for number, colour in enumerate(["red", "blue"] * 4):
        Image.new("RGB", (28, 20 + number), colour).save(tmp_path / f"{number}.png")
        row = {"question": "what color ?", "answer": colour, "image": f"{number}.png"}
        rows.append(json.dumps(row) + "\n")
    (tmp_path / "chats.jsonl").write_text("".join(rows), encoding="utf-8")
    return tmp_path / "chats.jsonl"


@pytest.fixture
def group() -> Iterator[None]:
    """Take down the process group that ``strategy: ddp`` sets up, and what it says of its port."""
    before = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    "preset",
    [
        p if p.stem == "llava_1_5_7b_24gb" else pytest.param(p, marks=pytest.mark.slow)
        for p in PRESETS
    ],
    ids=lambda p: p.stem,
)
def test_a_preset_runs(preset: Path, make_small: Any, chats: Path, tmp_path: Path) -> None:
    """On the CPU, in one process; what else it says stays."""
    small = make_small(KINDS[preset.stem.rpartition("_")[0]])
    small.model().save_pretrained(tmp_path / "model")
    small.processor.save_pretrained(tmp_path / "model")
    names = ("base", "methods/qvlm", "schemes/w4a4", "data/chat", f"presets/{preset.stem}")
    options = [f"--config={CONFIGS / name}.yaml" for name in names]
    options += [f"--data.calibration.path={chats}", f"--model.family.path={tmp_path / 'model'}"]
    options += ["--data.calibration_pairs=8", "--data.search_pairs=4", "--model.epochs=1"]
    options += ["--model.entropy_samples=256", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    train_main(["fit", *options, f"--trainer.default_root_dir={tmp_path / 'run'}"])
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert [set(epoch) for epoch in report["loss"]] == [{"reg", "ent", "err", "total"}]
    artifact = load_artifact(tmp_path / "run" / "artifact")
    assert str(next(artifact.model.parameters()).dtype) == "torch.bfloat16"
    assert artifact.structure.quantized

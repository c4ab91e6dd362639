"""The curves of a run that was interrupted and resumed: one folder, every step once."""

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qvlm_lightning.calibration import VisualEncoderOptimization
from qvlm_lightning.cli import train_main

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.slow
def test_a_run_that_broke_off_and_was_resumed_has_one_curve(tmp_path, monkeypatch, capsys):
    """Steps 1 and 2 are checkpointed; step 3 is logged, lost and done again."""
    files = ("base", "methods/veo", "schemes/w4a4", "models/tiny", "data/tiny")
    point = "{class_path: qvlm_lightning.callbacks.ResumePoint, init_args: {every_n_steps: 2}}"
    (tmp_path / "often.yaml").write_text(f"trainer:\n  callbacks+:\n    - {point}\n")
    command = [
        "fit", *(f"--config={CONFIGS / name}.yaml" for name in files),
        f"--config={tmp_path / 'often.yaml'}", "--model.epochs=2", "--model.entropy_samples=256",
        "--data.calibration_pairs=12", "--data.search_pairs=4", "--data.batch_size=4",
        "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    step = VisualEncoderOptimization._step

    def break_off(self, epoch: int, index: int) -> None:
        if self.state.steps == 3:
            raise RuntimeError("the machine is gone")
        step(self, epoch, index)

    monkeypatch.setattr(VisualEncoderOptimization, "_step", break_off)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        train_main(command)
    monkeypatch.undo()
    train_main([*command, "--ckpt_path=last"])
    logs = tmp_path / "run" / "lightning_logs"
    assert [folder.name for folder in logs.iterdir()] == ["version_0"]
    assert len(list((logs / "version_0").glob("events.*"))) >= 2
    found = EventAccumulator(str(logs / "version_0"), size_guidance={"scalars": 0}).Reload()
    curve = found.Scalars("detail/loss/total")
    assert [event.step for event in curve] == [1, 2, 3, 4, 5, 6]
    headlines = {tag for tag in found.Tags()["scalars"] if tag.startswith("headline/")}
    assert "headline/loss" in headlines
    assert len(headlines) <= 5
    said = capsys.readouterr().out
    assert len(re.findall(r"^loss +", said, flags=re.MULTILINE)) == 1

"""Resume points are written by our own writer, unless the user gives another."""

from pathlib import Path

import pytest
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer

from qvlm_lightning.calibration.checkpoint import CheckpointFiles
from qvlm_lightning.callbacks import ResumePoint
from qvlm_lightning.errors import InputError


class OfTheUser(TorchCheckpointIO):
    """Writes wherever its user wants."""


@pytest.mark.parametrize(("plugins", "kind"), [(None, CheckpointFiles), (OfTheUser(), OfTheUser)])
def test_who_writes_checkpoints(tmp_path: Path, plugins, kind):
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        plugins=plugins,
    )
    ResumePoint().setup(trainer, LightningModule(), "fit")
    assert type(trainer.strategy.checkpoint_io) is kind


def test_a_distance_of_nothing():
    with pytest.raises(InputError, match="every_n_steps 0"):
        ResumePoint(every_n_steps=0)

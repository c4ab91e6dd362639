"""Bar and logger of the calibration program, as it makes them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from qvlm_lightning.calibration.module import QuantModule
from qvlm_lightning.callbacks import CalibrationBar
from qvlm_lightning.cli import CalibrationCLI

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = ("base", "methods/rtn", "schemes/w4a4", "models/tiny", "data/tiny")


class Parsed(CalibrationCLI):
    """Builds everything and runs nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@pytest.fixture
def trainer(tmp_path):
    """The Trainer of a command line."""

    def build(*options: str) -> Any:
        files = [f"--config={CONFIGS / name}.yaml" for name in FILES]
        root = f"--trainer.default_root_dir={tmp_path / 'run'}"
        return Parsed(["fit", *files, root, "--trainer.accelerator=cpu", *options]).trainer

    return build


def test_a_run_has_our_bar_and_goes_on_in_one_folder_of_curves(trainer, tmp_path):
    for _ in range(2):  # the second as if it resumed the first
        built = trainer()
        assert isinstance(built.progress_bar_callback, CalibrationBar)
        (logger,) = built.loggers
        assert isinstance(logger, TensorBoardLogger)
        assert Path(logger.log_dir) == tmp_path / "run" / "lightning_logs" / "version_0"
        logger.experiment.add_scalar("headline/loss", 1.0)
        logger.experiment.close()


def test_a_bar_of_ones_own_is_kept(trainer):
    own = "lightning.pytorch.callbacks.TQDMProgressBar"
    assert isinstance(trainer(f"--trainer.callbacks+={own}").progress_bar_callback, TQDMProgressBar)


def test_there_can_be_no_bar_and_no_logger(trainer):
    built = trainer("--trainer.enable_progress_bar=false", "--trainer.logger=false")
    assert built.progress_bar_callback is None
    assert built.loggers == []


def test_a_logger_of_ones_own_is_kept(trainer, tmp_path):
    name = "lightning.pytorch.loggers.CSVLogger"
    built = trainer(f"--trainer.logger={name}", f"--trainer.logger.save_dir={tmp_path}")
    assert [type(logger) for logger in built.loggers] == [CSVLogger]


class Stepped(QuantModule):
    """Three epochs of four steps, five of them done."""

    epochs, optimises, steps_per_epoch = 3, True, 4
    state = SimpleNamespace(steps=5)

    def __init__(self) -> None:
        LightningModule.__init__(self)
        self.last_loss = 0.25


@pytest.mark.parametrize("main", [True, False])
def test_the_main_process_shows_epoch_and_loss(main, capsys):
    bar = CalibrationBar()
    if not main:
        bar.disable()
    now = SimpleNamespace(current_epoch=1)
    bar.on_train_batch_end(now, Stepped(), None, None, 0)
    now.current_epoch = 3  # the final pass takes no step
    bar.on_train_batch_end(now, Stepped(), None, None, 0)
    bar.on_exception(now, Stepped(), KeyboardInterrupt())
    said = capsys.readouterr().err
    assert ("optimisation  42% |" in said) == main
    assert said.count("epoch 2, loss 0.25") <= 2
    assert ("epoch 2, loss 0.25" in said) == main

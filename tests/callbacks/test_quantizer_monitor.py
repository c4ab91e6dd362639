"""QuantizerMonitor with a real Trainer and a real event file, and a module that only pretends."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from qvlm_lightning.callbacks import QuantizerMonitor
from qvlm_lightning.errors import InputError


def search(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "layer_forwards": 155 + epoch, "seconds": 2.5}


class Pretender(LightningModule):
    """Searches before every epoch and once more at the end, as a calibration module does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.measured = 0
        self.state = SimpleNamespace(
            dependency={"vision": [0.5, 0.25]},
            threshold={"vision": 0.375},
            partition={"vision": [[0, 1], [2, 2]], "projector": [[0, 0]]},
            percentiles={"layers.0.attn_in": 1.0, "layers.1.attn_in": 0.985},
            objective=[],
            passes=[],
        )

    def layer_sqnr(self) -> dict[str, float]:
        self.measured += 1
        return {"layers.0": 21.5}

    def clip_histograms(self) -> dict[str, tuple[torch.Tensor, float, float]]:
        return {"layers.0.attn_in": (torch.linspace(-1, 1, 50), -0.5, 0.5)}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 0:
            self.state.passes.append(search(self.current_epoch))
        return self.weight.sum()

    def on_train_end(self) -> None:
        self.state.passes.append(search(self.current_epoch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.0)


def fit(module: LightningModule, logger: Any, monitor: QuantizerMonitor, epochs: int = 2) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        callbacks=[monitor],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, DataLoader(torch.zeros(2, 1)))


def events(folder: str) -> EventAccumulator:
    accumulator = EventAccumulator(folder, size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload()


def test_every_search_and_every_epoch_is_written(tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(Pretender(), logger, QuantizerMonitor())
    written = events(logger.log_dir)
    forwards = [(e.step, e.value) for e in written.Scalars("search/layer_forwards")]
    assert forwards == [(0, 155.0), (1, 156.0), (2, 157.0)]
    assert [e.value for e in written.Scalars("search/seconds")] == [2.5] * 3
    sqnr = [(e.step, e.value) for e in written.Scalars("quant/sqnr/layers.0")]
    assert sqnr == [(0, 21.5), (1, 21.5)]
    percentile = written.Scalars("search/percentile/layers.1.attn_in")
    assert percentile[-1].value == pytest.approx(0.985)
    images = set(written.Tags()["images"])
    assert {"entropy/dependency/vision", "search/percentiles"} <= images
    assert "quant/clip/layers" in images
    assert written.Tags()["histograms"] == ["quant/values/layers.0.attn_in"]


def test_figures_are_pictures(tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(Pretender(), logger, QuantizerMonitor(), epochs=1)
    image = events(logger.log_dir).Images("entropy/dependency/vision")[0]
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert min(image.width, image.height) > 100


def test_measurements_can_be_rarer_than_epochs(tmp_path) -> None:
    module = Pretender()
    fit(module, TensorBoardLogger(tmp_path), QuantizerMonitor(every_n_epochs=2), epochs=5)
    assert module.measured == 2  # after epochs 1 and 3


def test_without_tensorboard_nothing_is_measured(tmp_path) -> None:
    module = Pretender()
    fit(module, CSVLogger(tmp_path), QuantizerMonitor(), epochs=1)
    assert module.measured == 0


def test_a_resumed_monitor_does_not_draw_twice(tmp_path) -> None:
    before = QuantizerMonitor()
    fit(Pretender(), TensorBoardLogger(tmp_path / "a"), before, epochs=1)
    after = QuantizerMonitor()
    after.load_state_dict(before.state_dict())
    module = Pretender()
    module.state.passes = [search(0), search(1)]
    logger = TensorBoardLogger(tmp_path / "b")
    fit(module, logger, after, epochs=1)
    assert [e.step for e in events(logger.log_dir).Scalars("search/seconds")] == [0, 1]


def test_a_module_without_quantizers_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="calibration modules, not BoringModel"):
        fit(BoringModel(), False, QuantizerMonitor())


def test_every_n_epochs_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="allowed is 1 or more"):
        QuantizerMonitor(every_n_epochs=0)

"""QuantizerMonitor with a real Trainer and real event files, and a module that only pretends."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import DataLoader

from qvlm_lightning.calibration.phases import Phases
from qvlm_lightning.callbacks import QuantizerMonitor
from qvlm_lightning.errors import InputError


def search(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "layer_forwards": 155 + epoch, "seconds": 2.5}


class Pretender(LightningModule):
    """Searches before every epoch and once more at the end, as a calibration module does; an epoch
    is one optimiser step.
    """

    def __init__(self, steps: int = 0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.measured = 0
        self.phases = Phases()
        self.state = SimpleNamespace(
            dependency={"vision": [0.5, 0.25]},
            threshold={"vision": 0.375},
            partition={"vision": [[0, 1], [2, 2]], "projector": [[0, 0]]},
            percentiles={"layers.0.attn_in": 1.0, "layers.1.attn_in": 0.985},
            objective=[
                {"tower": "vision", "first": 0, "last": 1, "minmax": 0.5, "joint": 0.25},
                {"tower": "vision", "first": 2, "last": 2, "minmax": 0.75, "joint": 0.25},
            ],
            passes=[],
            sqnr_minmax={"layers.0": 10.0, "layers.1": 20.0},
            steps=steps,
            initialised=steps > 0,
        )

    def layer_sqnr(self) -> dict[str, float]:
        self.measured += 1
        return {"layers.0": 21.5, "layers.1": 22.5}

    def clip_histograms(self) -> dict[str, tuple[torch.Tensor, float, float]]:
        return {"layers.0.attn_in": (torch.linspace(-1, 1, 50), -0.5, 0.5)}

    def hyperparameters(self) -> dict[str, Any]:
        return {"lr": 0.5, "scheme": {"language": {"weight_bits": 4}}}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 0:
            self.state.passes.append(search(self.current_epoch))
        self.state.steps += 1
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
    trainer.fit(module, DataLoader(torch.zeros(1, 1)))


def events(folder: str) -> EventAccumulator:
    accumulator = EventAccumulator(folder, size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload()


def test_every_search_and_every_epoch_is_written(tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(Pretender(), logger, QuantizerMonitor())
    written = events(logger.log_dir)
    forwards = [(e.step, e.value) for e in written.Scalars("detail/search/layer_forwards")]
    assert forwards == [(1, 155.0), (2, 156.0), (2, 157.0)]
    assert [e.value for e in written.Scalars("detail/search/seconds")] == [2.5] * 3
    sqnr = [(e.step, e.value) for e in written.Scalars("detail/sqnr/layers.0")]
    assert sqnr == [(1, 21.5), (2, 21.5)]
    percentile = written.Scalars("detail/percentile/layers.1.attn_in")
    assert percentile[-1].value == pytest.approx(0.985)
    images = set(written.Tags()["images"])
    assert {"detail/dependency/vision", "detail/percentiles", "detail/clip/layers"} == images
    assert written.Tags()["histograms"] == ["detail/values/layers.0.attn_in"]


def test_headlines_are_few_and_have_what_they_start_from_in_one_chart(tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    fit(Pretender(), logger, QuantizerMonitor())
    written = events(logger.log_dir)
    expected = {
        "headline/objective": 0.25, "baseline/objective": 0.625,
        "headline/sqnr_mean": 22.0, "baseline/sqnr_mean": 15.0,
        "headline/sqnr_worst": 21.5, "baseline/sqnr_worst": 10.0,
    }  # fmt: skip
    scalars = written.Tags()["scalars"]
    assert {tag for tag in scalars if not tag.startswith("detail/")} == set(expected)
    for tag, value in expected.items():
        assert {e.value for e in written.Scalars(tag)} == {value}, tag
    layout = Layout()
    (tensor,) = written.Tensors("custom_scalars__config__")
    layout.ParseFromString(tensor.tensor_proto.string_val[0])
    charts = [list(chart.multiline.tag) for chart in layout.category[0].chart]
    assert 0 < len(charts) <= 5
    assert ["headline/sqnr_mean$", "baseline/sqnr_mean$"] in charts


def test_figures_are_pictures(tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path)
    fit(Pretender(), logger, QuantizerMonitor(), epochs=1)
    image = events(logger.log_dir).Images("detail/dependency/vision")[0]
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert min(image.width, image.height) > 100


def test_measurements_can_be_rarer_than_epochs(tmp_path) -> None:
    module = Pretender()
    fit(module, TensorBoardLogger(tmp_path), QuantizerMonitor(every_n_epochs=2), epochs=5)
    assert module.measured == 2  # after epochs 1 and 3


def test_every_logger_gets_the_scalars_and_the_hyperparameters(tmp_path) -> None:
    board = TensorBoardLogger(tmp_path / "a", default_hp_metric=False)
    table = CSVLogger(tmp_path / "b")
    fit(Pretender(), [board, table], QuantizerMonitor())
    scalars = events(board.log_dir).Tags()["scalars"]
    with (Path(table.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert set(scalars) <= set(rows[0])
    values = {float(row["headline/sqnr_mean"]) for row in rows if row["headline/sqnr_mean"]}
    assert values == {22.0}
    for logger in (board, table):
        told = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
        assert told["scheme"]["language"]["weight_bits"] == 4


def test_hyperparameters_stand_beside_the_results(tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    fit(Pretender(), logger, QuantizerMonitor(), epochs=1)
    told = HParamsPluginData()
    found = events(logger.log_dir).PluginTagToContent("hparams")
    told.ParseFromString(found["_hparams_/session_start_info"])
    assert told.session_start_info.hparams["lr"].number_value == 0.5
    told.ParseFromString(found["_hparams_/experiment"])
    results = {metric.name.tag for metric in told.experiment.metric_infos}
    assert {"headline/objective", "headline/sqnr_mean"} <= results


def test_without_a_logger_nothing_is_measured() -> None:
    module = Pretender()
    fit(module, False, QuantizerMonitor(), epochs=1)
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
    assert len(events(logger.log_dir).Scalars("detail/search/seconds")) == 2


def test_a_resumed_run_goes_on_in_one_curve(tmp_path) -> None:
    """Four steps, interrupted behind the checkpoint of step 2, then steps 3 to 5."""
    first, second = (TensorBoardLogger(tmp_path, version=0) for _ in range(2))
    fit(Pretender(), first, QuantizerMonitor(), epochs=4)
    fit(Pretender(steps=2), second, QuantizerMonitor(), epochs=3)
    assert len(list(Path(first.log_dir).glob("events.*"))) == 2
    curve = events(first.log_dir).Scalars("headline/sqnr_mean")
    assert sorted({e.step for e in curve}) == [1, 2, 3, 4, 5]
    assert [e.step for e in curve] == sorted(e.step for e in curve)


def test_a_run_that_starts_afresh_forgets_the_one_before(tmp_path) -> None:
    first, second = (TensorBoardLogger(tmp_path, version=0) for _ in range(2))
    fit(Pretender(), first, QuantizerMonitor(), epochs=4)
    fit(Pretender(), second, QuantizerMonitor(), epochs=1)
    curve = events(first.log_dir).Scalars("detail/sqnr/layers.0")
    assert [e.step for e in curve] == [1]


def test_a_module_without_quantizers_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="calibration modules, not BoringModel"):
        fit(BoringModel(), False, QuantizerMonitor())


def test_every_n_epochs_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="allowed is 1 or more"):
        QuantizerMonitor(every_n_epochs=0)

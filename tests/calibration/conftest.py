"""A random LLaVA of 3 + 4 layers (2 tower layers reach the output), in a folder or without any
file, and batches for it.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from qvlm_lightning.calibration import Calibrator, VisualEncoderOptimization
from qvlm_lightning.calibration.stream_run import open_model
from qvlm_lightning.callbacks import EntropyRepartition, PercentileSearch
from qvlm_lightning.forward.stream import StreamedModel
from qvlm_lightning.methods import JointSearch, SequentialSearch
from qvlm_lightning.methods.base import Method
from qvlm_lightning.methods.proxies import Proxy
from qvlm_lightning.models.llava import Llava
from qvlm_lightning.quant.scheme import Scheme

IMAGE, PAD = 3, 0


class InFolder(Llava):
    """A LLaVA in a folder without a processor."""

    def load_processor(self) -> Any:
        raise AssertionError("there is no processor")

    def _image_token_id(self) -> int:
        return IMAGE


class ToyFamily(InFolder):
    """LLaVA without a folder."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__("toy")
        self.seed = seed

    def load_model(self) -> nn.Module:
        return build_toy(self.seed)


def build_toy(seed: int = 0, kv_heads: int = 2) -> nn.Module:
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=40,
            hidden_size=24,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=kv_heads,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=IMAGE,
    )
    model = LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:  # the default .02 makes every layer next to nothing
            nn.init.normal_(parameter, std=0.3 if "embed" in name else parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False)


def make_batch(
    first: int, size: int = 4, text: int = 6, seed: int = 0, blind: tuple[int, ...] = (1,)
) -> dict[str, Tensor]:
    """Return a batch of ``size`` samples, those in ``blind`` without an image, right-padded."""
    generator = torch.Generator().manual_seed(seed * 1000 + first)
    rows, labels, has_image = [], [], []
    for row in range(size):
        length = text - row % 2
        words = torch.randint(4, 40, (length,), generator=generator).tolist()
        ids = [1] + ([] if row in blind else [IMAGE] * 4) + words + [2]
        rows.append(ids)
        labels.append([-100] * (len(ids) - 2) + ids[-2:])
        has_image.append(row not in blind)
    width = max(map(len, rows))
    ids = torch.tensor([r + [PAD] * (width - len(r)) for r in rows])
    batch = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
        "labels": torch.tensor([r + [-100] * (width - len(r)) for r in labels]),
        "sample_index": torch.arange(first, first + size),
        "has_image": torch.tensor(has_image),
    }
    if any(has_image):
        batch["pixel_values"] = torch.randn(sum(has_image), 3, 16, 16, generator=generator)
    return batch


@pytest.fixture
def toy_family() -> ToyFamily:
    return ToyFamily()


@pytest.fixture
def toy_batches() -> list[dict[str, Tensor]]:
    return [make_batch(0), make_batch(4), make_batch(8, blind=(0, 1, 2, 3))]


@pytest.fixture
def build() -> Any:
    return build_toy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The random model, saved in four shards."""
    build_toy().save_pretrained(tmp_path / "model", max_shard_size="40KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 4
    return tmp_path / "model"


@pytest.fixture
def make() -> Any:
    return make_batch


@pytest.fixture
def family_class() -> type[ToyFamily]:
    return ToyFamily


@pytest.fixture
def calibrated(toy_family: ToyFamily, toy_batches: list[dict[str, Tensor]]) -> Any:
    """A calibrator with statistics, W4A4 static_tensor."""

    def start(scheme: Scheme | None = None, seed: int = 0, folder: Any = None) -> Calibrator:
        family = ToyFamily(seed)
        calibrator = Calibrator(
            family.load_model(),
            family,
            scheme or Scheme.parse("w4a4"),
            toy_batches,
            toy_batches[:2],
            progress_folder=folder,
        )
        calibrator.collect()
        return calibrator

    return start


@pytest.fixture
def opened(toy_batches: list[dict[str, Tensor]]) -> Any:
    """A calibrator of the model in a folder, in memory or streamed, without statistics."""

    def start(
        folder: Path, streamed: bool = True, scheme: Scheme | None = None, dtype: str = "float32"
    ) -> Calibrator:
        family, cpu = InFolder(str(folder), dtype), torch.device("cpu")
        model, weights = open_model(family, cpu) if streamed else (family.load_model(), None)
        scheme = scheme or Scheme.parse("w4a4")
        return Calibrator(model, family, scheme, toy_batches, toy_batches[:2], weights=weights)

    return start


@pytest.fixture
def calibrate(opened: Any) -> Any:
    """The same after a search of every tower."""

    def run(
        folder: Path,
        streamed: bool,
        method: Method | None = None,
        proxy: Proxy | None = None,
        spill: Path | None = None,
        **options: Any,
    ) -> Calibrator:
        calibrator, method = opened(folder, streamed, **options), method or JointSearch()
        if isinstance(calibrator.passes, StreamedModel):
            calibrator.passes.spill = spill
        calibrator.collect(method.candidates("static_tensor") if streamed else None)
        towers = list(calibrator.structure.towers)
        if proxy is not None:
            calibrator.repartition(towers, proxy)
        calibrator.search(towers, method, "first")
        return calibrator

    return run


@pytest.fixture
def start(toy_family: ToyFamily) -> Any:
    """A calibrator with statistics, W4A4 static_tensor, of any model and any batches."""

    def make(model: nn.Module, batches: list[dict[str, Tensor]], seed: int = 0) -> Calibrator:
        scheme = Scheme.parse("w4a4")
        calibrator = Calibrator(model, toy_family, scheme, batches, batches[:2], seed=seed)
        calibrator.collect()
        return calibrator

    return make


class ToyData(LightningDataModule):
    """The toy batches behind the data module's interface."""

    def __init__(self, batches: list[dict[str, torch.Tensor]]) -> None:
        super().__init__()
        self.batches = batches
        self.calibration_ids = [str(i) for b in batches for i in b["sample_index"].tolist()]

    def calibration_batches(self) -> list[Any]:
        return self.batches

    def search_batches(self) -> list[Any]:
        return self.batches[:2]

    def rank_batches(self, rank: int, world_size: int) -> list[Any]:
        return [part(batch, rank, world_size) for batch in self.batches]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)


def part(batch: dict[str, torch.Tensor], rank: int, size: int) -> dict[str, torch.Tensor]:
    """Return the samples ``rank::size`` of a batch."""
    taken = {n: x[rank::size] for n, x in batch.items() if n != "pixel_values"}
    if taken["has_image"].any():
        mine = torch.arange(len(batch["has_image"]))[batch["has_image"]] % size == rank
        taken["pixel_values"] = batch["pixel_values"][mine]
    return taken


@pytest.fixture
def started(family_class, toy_batches, tmp_path):
    """A module behind ``on_train_start`` and one sequential search, outside of any loop."""

    def start(scheme: str = "w4a4", **options: Any) -> VisualEncoderOptimization:
        method = SequentialSearch()
        module = VisualEncoderOptimization(family_class(), Scheme.parse(scheme), method, **options)
        data = ToyData(toy_batches)
        module.__dict__["_trainer"] = None
        module._fabric = None
        trainer = Trainer(
            default_root_dir=tmp_path, fast_dev_run=True, accelerator="cpu", logger=False
        )
        trainer.strategy.connect(module)
        module.trainer = trainer
        trainer._data_connector.attach_datamodule(module, datamodule=data)
        module.configure_model()
        module.on_train_start()
        if scheme != "fp":
            module.search(0)
        module.state.jacobian = module.loss.jacobian()
        return module

    return start


def fit_toy(family, batches, root, epochs=2, **options: Any) -> VisualEncoderOptimization:
    """Run the Trainer on toy batches."""
    method = JointSearch(per="layer")
    scheme = Scheme.parse("w4a4")
    module = VisualEncoderOptimization(family, scheme, method, epochs=epochs, **options)
    trainer = Trainer(
        default_root_dir=root,
        max_epochs=epochs + 1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EntropyRepartition(), PercentileSearch()],
    )
    trainer.fit(module, datamodule=ToyData(batches))
    return module


@pytest.fixture
def fit() -> Any:
    return fit_toy

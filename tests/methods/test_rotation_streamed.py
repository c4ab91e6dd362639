"""Rotations of a model without weights: the bits of the one in memory; the file that keeps them."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from qvlm_lightning.artifact import save_artifact
from qvlm_lightning.calibration import QuantModule
from qvlm_lightning.calibration.decisions import Decisions
from qvlm_lightning.callbacks import PercentileSearch
from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import (
    GPTQ,
    Chain,
    LearnedTransforms,
    LeastSquares,
    Rotation,
    SequentialSearch,
)
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.weights import prepared
from tests.calibration.conftest import InFolder, ToyData, build_toy

TOWERS = ["vision", "projector", "language"]
METHODS = {
    "plus_fast": lambda: Chain([Rotation(), GPTQ(ranges=LeastSquares())]),
    "quarot": lambda: Chain([Rotation(), SequentialSearch()]),
    "everywhere": lambda: Chain([Rotation(online="all"), LearnedTransforms(steps=2), GPTQ()]),
    "heads": lambda: Rotation(residual=False, online="none"),
    "transforms": lambda: LearnedTransforms(steps=2, full_width=1),
}
QUICK = ("plus_fast",)
CASES = [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]


class NoProcessor:
    def save_pretrained(self, folder: Path) -> None:
        """Nothing to save."""


@pytest.fixture
def small(tmp_path):
    """Grouped queries, tied embeddings, gains and biases that are not 1 and 0, in bfloat16."""
    model = build_toy(kv_heads=1)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.bfloat16().save_pretrained(tmp_path / "small", max_shard_size="20KB")
    return tmp_path / "small"


def artifact(opened, folder, method, streamed, to, mode="static_tensor"):
    scheme = Scheme.parse("w4a8", activation_mode=mode, sink="prefix")
    calibrator = opened(folder, streamed, scheme)
    calibrator.prepare(method)
    calibrator.collect(method.candidates(mode) if streamed else None)
    calibrator.search(TOWERS, method, "a")
    calibrator.structure.enable(True)
    weights, stored = calibrator.passes.weights if streamed else None, calibrator.structure.stored
    save_artifact(to, calibrator.model, NoProcessor(), {}, weights, stored)
    return calibrator


@pytest.mark.parametrize("method", CASES)
def test_the_artifact_is_that_of_the_model_in_memory(method, opened, small, tmp_path):
    made = METHODS[method]
    one = artifact(opened, small, made(), False, tmp_path / "memory")
    other = artifact(opened, small, made(), True, tmp_path / "streamed")
    assert one.structure.notes == other.structure.notes
    files = sorted(p.name for p in (tmp_path / "memory").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "streamed").iterdir())
    for name in files:
        pair = [(tmp_path / way / name).read_bytes() for way in ("memory", "streamed")]
        assert pair[0] == pair[1], name
    assert (tmp_path / "memory" / "weights.packed").is_file()


FILE = "prepared.safetensors"


@pytest.fixture
def begun(opened, folder, tmp_path):
    """A streamed calibrator whose search has a folder, prepared but without statistics."""

    def begin(seed: int = 0):
        calibrator = opened(folder, True)
        calibrator.blocks.decisions = Decisions(tmp_path / "search")
        calibrator.prepare(Rotation(seed=seed))
        return calibrator

    return begin


def refuse(*_):
    raise AssertionError("a weight is made again")


def test_a_file_has_the_weights_until_the_run_ends(begun, opened, folder, tmp_path, monkeypatch):
    whole = opened(folder, False)
    whole.prepare(Rotation())
    calibrator, path = begun(), tmp_path / "search" / FILE
    assert not path.exists()
    calibrator.collect()
    names = {n for n, x in load_file(path).items() if x.equal(whole.model.get_parameter(n))}
    weights = calibrator.passes.weights
    assert names == set(weights.makers)
    assert len(names) > 30
    with monkeypatch.context() as patched:
        patched.setattr(weights, "makers", dict.fromkeys(weights.makers, refuse))
        assert all(weights.read(n).equal(load_file(path)[n]) for n in names)
    calibrator.finish()
    assert list((tmp_path / "search").iterdir()) == []
    site = next(s for s in calibrator.structure.sites if s.transform is not None)
    site.transform.left.mul_(2)  # as learning may
    name = f"{next(iter(site.linears))}.weight"
    assert weights.read(name).equal(whole.model.get_parameter(name))


def test_a_resumed_run_takes_the_file_unless_it_is_of_another(begun, tmp_path, monkeypatch):
    path, kept = tmp_path / "search" / FILE, tmp_path / "kept"
    begun().prepared.write()
    shutil.copy(path, kept)
    with monkeypatch.context() as patched:
        patched.setattr(prepared, "write_shard", refuse)
        begun().prepared.write()
        with pytest.raises(AssertionError, match="made again"):
            begun(seed=1).prepared.write()
    path.write_bytes(kept.read_bytes()[:-1])  # as a broken copy leaves it
    begun().prepared.write()
    assert path.read_bytes() == kept.read_bytes()


def test_a_disk_without_room_is_refused_before_the_work(begun, tmp_path, monkeypatch):
    free = namedtuple("Usage", "free")
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda _: free(10_000))
    with pytest.raises(
        InputError, match=r"take 0\.00 GiB of disk .* has 0\.00 GiB; choose another"
    ):
        begun()
    with monkeypatch.context() as patched:
        patched.setattr(prepared.shutil, "disk_usage", lambda _: free(10**6))
        begun().prepared.write()
    begun()  # the file lies there already


def test_what_a_killed_run_left_counts_as_room(begun, tmp_path, monkeypatch):
    begun().prepared.write()
    (tmp_path / "search" / FILE).rename(tmp_path / "search" / f".{FILE}.part")
    free = namedtuple("Usage", "free")
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda _: free(10_000))
    begun().prepared.write()
    assert [x.name for x in (tmp_path / "search").iterdir()] == [FILE]


class Stops(LeastSquares):
    """Stops the run in the middle of its search."""

    def solve(self, block):
        if block.units[0].name.endswith("language_model.layers.2"):
            raise KeyboardInterrupt
        return super().solve(block)


def test_a_stopped_run_leaves_the_file_and_one_that_ends_does_not(folder, toy_batches, tmp_path):
    """Lightning ends a run in the same way on a signal."""

    def fit(ranges):
        module = QuantModule(InFolder(str(folder)), Scheme.parse("w4a8"), streaming=True)
        module.method = Chain([Rotation(), ranges])
        trainer = Trainer(
            default_root_dir=tmp_path / "run",
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[PercentileSearch()],
        )
        trainer.fit(module, datamodule=ToyData(toy_batches))

    file = tmp_path / "run" / "search" / FILE
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(Stops())
    assert file.is_file()
    fit(LeastSquares())
    assert not file.exists()
    assert len(list(file.parent.iterdir())) > 0

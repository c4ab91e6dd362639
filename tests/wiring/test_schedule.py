"""When a run measures, searches and optimises (docs/paper.md, A21), by the Trainer."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from qvlm_lightning.calibration import Calibrator, VisualEncoderOptimization
from qvlm_lightning.callbacks import EntropyRepartition, ResumePoint
from tests.calibration import conftest
from tests.calibration.conftest import ToyFamily, fit_toy, make_batch


@pytest.fixture
def toy_batches() -> list[dict[str, torch.Tensor]]:
    return [make_batch(0), make_batch(4)]


@pytest.mark.parametrize(
    ("epochs", "every", "due"),
    [(4, 2, [0, 2, 4]), (4, 3, [0, 3, 4]), (3, 1, [0, 1, 2, 3]), (3, 5, [0, 3])],
)
def test_partition_and_search_take_place_every_n_epochs_and_at_the_end(
    toy_batches, tmp_path, epochs, every, due
):
    module = fit_toy(ToyFamily(), toy_batches, tmp_path, epochs=epochs, every_n_epochs=every)
    state = module.state
    assert state.passes_done == state.partitions_done == due
    assert [p["epoch"] for p in state.passes] == due
    assert [p["epoch"] for p in state.partitions] == due
    towers = [p["towers"] for p in state.passes]
    assert towers == [["vision", "projector", "language"], *[["language"]] * (len(due) - 1)]
    assert state.steps == epochs * len(toy_batches)
    # each search uses the blocks of the partition that came just before it
    blocks = [(o["tower"], o["first"], o["last"]) for o in state.objective]
    expected = [(t, *b) for t, parts in state.partitions[-1]["partition"].items() for b in parts]
    assert blocks == expected


class Watch(Callback):
    """Notes what is learned before and after every step, and the step's rate."""

    def __init__(self) -> None:
        self.before: list[list[torch.Tensor]] = []
        self.rates: list[float] = []
        self.weights: list[Any] = []
        self.norms: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        self.before.append([p.detach().clone() for p in module.quantizer_parameters()])

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.weights.append(module.state.jacobian)
        squares = [p.grad.square().sum() for p in module.quantizer_parameters()]
        self.norms.append(float(torch.stack(squares).sum().sqrt()))


def watched(batches: Any, root: Any, monkeypatch: Any, **options: Any) -> tuple[Any, Watch]:
    """Run the Trainer with one more callback."""
    watch, init = Watch(), Trainer.__init__

    def with_watch(self: Trainer, *args: Any, **settings: Any) -> None:
        settings["callbacks"] = [*settings["callbacks"], watch]
        init(self, *args, **settings)

    monkeypatch.setattr(Trainer, "__init__", with_watch)
    return fit_toy(ToyFamily(), batches, root, **options), watch


def test_every_step_has_the_rate_of_the_cosine_and_every_epoch_its_own_jacobian(
    toy_batches, tmp_path, monkeypatch
):
    module, watch = watched(toy_batches, tmp_path, monkeypatch, epochs=2, lr=0.02)
    cosine = [0.01 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert watch.rates[:4] == pytest.approx(cosine)
    first, again, second, _ = watch.weights[:4]
    assert first == again
    assert first != second
    # the final epoch trains nothing
    last = [p.detach() for p in module.quantizer_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(watch.before[4], last, strict=True))
    moved = zip(watch.before[0], watch.before[1], strict=True)
    assert all(not torch.equal(a, b) for a, b in moved)


def test_a_step_takes_the_batch_of_its_number_and_triples_of_its_own(
    toy_batches, tmp_path, monkeypatch
):
    seen = []
    terms = VisualEncoderOptimization.loss_terms

    def spy(self: Any, index: int, step: int) -> Any:
        found = terms(self, index, step)
        seen.append((index, step))
        return found

    monkeypatch.setattr(VisualEncoderOptimization, "loss_terms", spy)
    fit_toy(ToyFamily(), toy_batches, tmp_path, epochs=2)
    assert seen == [(0, 0), (1, 1), (0, 2), (1, 3)]


def test_the_draw_of_the_triples_is_that_of_seed_and_step(started):
    module = started(entropy_samples=64)
    found = [float(module.loss_terms(0, step)["ent"].detach()) for step in (0, 1, 1)]
    assert found[0] != found[1] == found[2]
    module.seed = 1
    assert float(module.loss_terms(0, 1)["ent"].detach()) != found[1]


def test_gradients_are_clipped_together(toy_batches, tmp_path, monkeypatch):
    _, watch = watched(toy_batches, tmp_path, monkeypatch, epochs=1, grad_clip=1e-3)
    assert watch.norms[:2] == pytest.approx([1e-3] * 2, rel=1e-3)


def test_options_of_the_partition_reach_every_pass(toy_batches, tmp_path, monkeypatch):
    options = {"threshold": -1.0, "max_depth": 2, "algorithm": "dp", "samples": 100}
    monkeypatch.setattr(conftest, "EntropyRepartition", lambda: EntropyRepartition(**options))
    found = []
    repartition = Calibrator.repartition

    def spy(self: Any, *args: Any, **settings: Any) -> None:
        found.append(settings)
        repartition(self, *args, **settings)

    monkeypatch.setattr(Calibrator, "repartition", spy)
    module = fit_toy(ToyFamily(), toy_batches, tmp_path, epochs=2, every_n_epochs=1)
    assert found == [options] * 3
    assert module.state.partition["language"] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("every", "saved"), [(1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (4, [4])])
def test_resume_points_are_every_n_steps(tmp_path, every, saved):
    """A step may end several batches; a batch of the final epoch ends none."""
    point, steps = ResumePoint(every_n_steps=every), []
    point.dirpath = str(tmp_path)
    for step in (0, 1, 2, 2, 3, 4, 5, 6, 6):
        trainer = SimpleNamespace(global_step=step, fast_dev_run=False)
        trainer.save_checkpoint = lambda path, weights_only, step=step: steps.append(step)
        point.on_train_batch_end(trainer, None, None, None, 0)
    assert steps == saved
    assert point.last_model_path == str(tmp_path / "last.ckpt")

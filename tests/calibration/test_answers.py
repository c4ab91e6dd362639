"""Calibrating without answers: L_reg is 0, nothing else changes, and the report says so."""

from types import SimpleNamespace

import pytest
import torch

from qvlm_lightning.calibration import LossWeights, VisualEncoderOptimization
from qvlm_lightning.quant.scheme import Scheme
from qvlm_lightning.vision.answers import note_missing_answers


def mute(batch: dict[str, torch.Tensor], rows=slice(None)) -> dict[str, torch.Tensor]:
    labels = batch["labels"].clone()
    labels[rows] = -100
    return batch | {"labels": labels}


def test_a_set_with_answers_needs_no_note(toy_batches):
    structure = SimpleNamespace(notes=[])
    note_missing_answers(structure, toy_batches)
    assert structure.notes == []


def test_the_note_counts_samples_and_is_made_once(toy_batches):
    structure = SimpleNamespace(notes=[])
    first, *others = toy_batches
    for _ in range(2):
        note_missing_answers(structure, [mute(first, [0, 2]), *others])
    assert structure.notes == [
        "2 of 12 calibration samples have no answer: L_reg (eq. 10) counts the others"
    ]
    structure.notes.clear()
    note_missing_answers(structure, [mute(batch) for batch in toy_batches])
    assert structure.notes == [
        "12 of 12 calibration samples have no answer: L_reg (eq. 10) is 0 throughout"
    ]


@pytest.fixture
def module(family_class, toy_batches, tmp_path):
    """The optimisation of a toy, behind ``on_train_start``, on batches without a label."""
    from lightning.pytorch import LightningDataModule, Trainer

    class Mute(LightningDataModule):
        calibration_ids = ("a",)

        def calibration_batches(self):
            return [mute(batch) for batch in toy_batches]

        search_batches = calibration_batches

        def rank_batches(self, rank, world_size):
            return self.calibration_batches()

    module = VisualEncoderOptimization(family_class(), Scheme.parse("w4a4"))
    trainer = Trainer(default_root_dir=tmp_path, fast_dev_run=True, accelerator="cpu", logger=False)
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer._data_connector.attach_datamodule(module, datamodule=Mute())
    module.configure_model()
    module.on_train_start()
    module.state.jacobian = module.loss.jacobian()
    return module


def test_the_loss_without_answers_is_that_of_the_other_terms(module):
    module.weights = LossWeights(0.3, 0.7, 2.0)
    terms = module.loss_terms(0, 0)
    assert terms["reg"].item() == 0.0
    others = 0.3 * terms["ent"] + 0.7 * terms["err"]
    assert terms["total"].item() == pytest.approx(others.item())
    terms["total"].backward()
    gradients = [p.grad for p in module.quantizer_parameters()]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert any(bool(g.abs().sum() > 0) for g in gradients)
    assert any("no answer" in note for note in module.structure.notes)

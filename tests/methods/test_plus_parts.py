"""Partition and visual-encoder optimisation around the recipe of rotation, transforms and GPTQ."""

import pytest
import torch
from lightning.pytorch import Trainer

from qvlm_lightning.calibration import VisualEncoderOptimization
from qvlm_lightning.callbacks import EntropyRepartition, PercentileSearch
from qvlm_lightning.methods import (
    GPTQ,
    Chain,
    LearnedTransforms,
    LeastSquares,
    ModalityBalance,
    Rotation,
)
from qvlm_lightning.quant.scheme import Scheme
from tests.calibration.conftest import ToyData, ToyFamily


def recipe(**balance):
    learned = LearnedTransforms(steps=2, ranges=LeastSquares(), **balance)
    return Chain([Rotation(), learned, GPTQ(**balance)])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["static_tensor", "dynamic_token"])
def test_every_part_at_once(toy_batches, tmp_path, mode):
    method = recipe(token_weights=ModalityBalance())
    scheme = Scheme.parse("w4a4", activation_mode=mode)
    module = VisualEncoderOptimization(ToyFamily(), scheme, method, epochs=2, every_n_epochs=2)
    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EntropyRepartition(max_depth=3), PercentileSearch()],
    )
    trainer.fit(module, datamodule=ToyData(toy_batches))
    assert module.state.passes_done == [0, 2]
    assert any(last > first for first, last in module.state.partition["language"])
    assert all(torch.tensor(o["chain"]).isfinite() for o in module.state.objective)
    assert module.state.gradients
    names = {name.partition("layers")[0] for name in module.structure.changes}
    assert len(names) >= 2

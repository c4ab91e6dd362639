"""Injected outliers leave outputs alone and make activations harder to quantize."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qvlm_lightning.models.tiny import generate
from qvlm_lightning.models.tiny.build import build_model, build_processor
from qvlm_lightning.models.tiny.evaluate import answer_logits
from qvlm_lightning.models.tiny.outliers import inject_outliers, norms_and_readers

SAMPLES = generate("calibration", 20)


@pytest.mark.parametrize("scale", [4, 10, 30])
def test_logits_stay(scale: float) -> None:
    model, processor = build_model(1).eval(), build_processor()
    # Gains and biases away from 1 and 0, so that a forgotten bias would show.
    for norm, _ in norms_and_readers(model):
        for parameter in norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
    before = answer_logits(model, processor, SAMPLES)
    peaks = peak_inputs(model, processor)
    inject_outliers(model, scale)
    after = answer_logits(model, processor, SAMPLES)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    assert peak_inputs(model, processor) > 1.5 * peaks


def peak_inputs(model: nn.Module, processor: object) -> float:
    """Mean over the reading layers of their largest input."""
    peaks: list[float] = []
    hooks = [
        readers[0].register_forward_pre_hook(
            lambda _, args: peaks.append(args[0].abs().max().item())
        )
        for _, readers in norms_and_readers(model)
    ]
    answer_logits(model, processor, SAMPLES)
    for hook in hooks:
        hook.remove()
    return sum(peaks) / len(peaks)


def test_every_norm_of_tower_and_decoder_is_found() -> None:
    assert len(list(norms_and_readers(build_model()))) == 2 * 6 + 2 * 6


def test_scale_one_changes_no_bit() -> None:
    model = build_model(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inject_outliers(model, 1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_channels_depend_on_the_seed_alone() -> None:
    weights = []
    for seed in (0, 0, 1):
        model = build_model(2)
        inject_outliers(model, 10, channels=3, seed=seed)
        weights.append(model.model.language_model.layers[0].input_layernorm.weight.clone())
        assert (weights[-1] == 10).sum() == 3
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("scale", [0.5, 0, -1, float("nan"), float("inf")])
def test_bad_scale_is_named(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"outlier scale is {scale}; allowed are finite numbers"):
        inject_outliers(build_model(), scale)


@pytest.mark.parametrize("channels", [0, 129])
def test_bad_channels_are_named(channels: int) -> None:
    with pytest.raises(ValueError, match=f"outlier channels is {channels}; allowed are"):
        inject_outliers(build_model(), 2, channels=channels)

"""Rules for ranges that look at the activations alone, against plain loops."""

import pytest
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import LeastSquares, MovingAverage
from qvlm_lightning.quant.scheme import Scheme

TOWERS = ["vision", "projector", "language"]


def caught(calibrator, name, batches):
    """The full-precision input of a Linear, one tensor [T, D] per sample that reaches it."""
    samples = []
    linear = calibrator.model.get_submodule(name)
    for batch in batches:
        seen = []
        handle = linear.register_forward_pre_hook(lambda _, a, s=seen: s.append(a[0].clone()))
        inputs = {
            k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "pixel_values")
        }
        with torch.no_grad(), calibrator.structure.only(set()):
            calibrator.model(**inputs)
        handle.remove()
        for x in seen:
            for row in range(x.shape[0]):
                kept = (
                    batch["attention_mask"][row].bool() if "language_model" in name else slice(None)
                )
                samples.append(x[row][kept])
    return samples


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_the_moving_average_is_that_of_a_loop(calibrated, toy_batches, tower):
    calibrator = calibrated()
    calibrator.search(TOWERS, MovingAverage(0.25), "a")
    for site in calibrator.structure.towers[tower].sites:
        low = high = None
        for x in caught(calibrator, next(iter(site.linears)), toy_batches):
            if low is None:
                low, high = float(x.min()), float(x.max())
            low += 0.25 * (float(x.min()) - low)
            high += 0.25 * (float(x.max()) - high)
        assert float(site.quantizer.low) == pytest.approx(low, rel=1e-4)
        assert float(site.quantizer.high) == pytest.approx(high, rel=1e-4)


def fake(x, low, high):
    scale = (max(high, 0.0) - min(low, 0.0)) / 15
    zero = round(-min(low, 0.0) / scale)
    return ((x / scale).round() + zero).clamp(0, 15).sub(zero) * scale


def test_least_squares_chooses_the_least_error_of_the_activations(calibrated, toy_batches):
    grid = [1.0, 0.97, 0.94, 0.9]
    calibrator = calibrated()
    calibrator.search(TOWERS, LeastSquares(grid), "a")
    chosen = set()
    for site in calibrator.structure.towers["language"].sites:
        low, high = calibrator.statistics.ranges(site, grid)
        samples = caught(calibrator, next(iter(site.linears)), toy_batches[:2])
        errors = [
            sum(float((fake(x, float(a), float(b)) - x).double().square().sum()) for x in samples)
            for a, b in zip(low, high, strict=True)
        ]
        best = errors.index(min(errors))
        assert float(site.quantizer.percentile) == grid[best]
        assert torch.equal(site.quantizer.high, high[best])
        chosen.add(best)
    assert len(chosen) > 1


@pytest.mark.parametrize("method", [MovingAverage(), LeastSquares()])
@pytest.mark.parametrize("mode", ["static_channel", "dynamic_token"])
def test_they_run_in_every_mode(calibrated, method, mode):
    calibrator = calibrated(Scheme.parse("w4a4", activation_mode=mode))
    calibrator.search(TOWERS, method, "a")
    for site in calibrator.structure.sites:
        assert site.quantizer.low.isfinite().all()
        assert (site.quantizer.low <= site.quantizer.high).all()
    for decided in calibrator.state.objective:
        assert decided[method.name] > 0


def test_impossible_settings_are_refused():
    with pytest.raises(InputError, match="at most 1"):
        MovingAverage(1.5)
    with pytest.raises(InputError, match="fall from 1"):
        LeastSquares([0.99, 0.98])

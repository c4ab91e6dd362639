"""An optimiser's step in parts, one after another, is that of the whole batch."""

import pytest
import torch

from qvlm_lightning.calibration import LossWeights, VisualEncoderOptimization
from qvlm_lightning.errors import InputError


def gradients(module: VisualEncoderOptimization, parts: bool) -> list[torch.Tensor]:
    backward = module._backward_in_parts if parts else module._backward
    for parameter in module.quantizer_parameters():
        parameter.grad = None
    with torch.enable_grad():
        terms = backward(0, 3)
    found = [p.grad.double() for p in module.quantizer_parameters()]
    return [torch.stack([x.detach().double() for x in terms.values()]), *found]


@pytest.mark.parametrize("blind", [(1,), (0,), (0, 2), (1, 2, 3)])
@pytest.mark.parametrize("parts", [2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_micro_batches_give_the_step_of_the_whole_batch(started, toy_batches, make, parts, blind):
    """Ratios, a logarithm and an entropy of the whole batch; some parts have no image."""
    toy_batches[0] = make(0, blind=blind)
    weights = LossWeights(0.3, 0.7, 2.0)
    whole = started(weights=weights)
    module = started(weights=weights, micro_batches=parts)
    assert [len(b) for b in module.loss.parts] == [parts] * 3
    for tower, weight in whole.state.jacobian.items():
        assert module.state.jacobian[tower] == pytest.approx(weight, rel=1e-5)
    expected = gradients(whole, parts=False)
    for found in (gradients(module, parts=True), gradients(module, parts=False)):
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    assert sum(float(g.abs().sum()) for g in expected[1:]) > 0.1


def test_every_parameter_has_a_gradient_of_its_own_without_images(started):
    """DDP and later parts write into them."""
    module = started()
    module._zero().backward()
    places = [p.grad.data_ptr() for p in module.quantizer_parameters()]
    assert len(set(places)) == len(places) > 10
    assert all(p.grad.eq(0).all() for p in module.quantizer_parameters())


def test_a_run_in_micro_batches_learns_the_same(family_class, toy_batches, tmp_path, fit):
    runs = [
        fit(family_class(), toy_batches, tmp_path / str(n), epochs=1, micro_batches=n)
        for n in (1, 2)
    ]
    for one, other in zip(*(m.quantizer_parameters() for m in runs), strict=True):
        assert torch.allclose(one, other, atol=1e-4)  # a step is 1e-2
    assert any(not torch.equal(p, torch.ones_like(p)) for p in runs[1].quantizer_parameters())


def test_more_micro_batches_than_samples_are_refused(started):
    with pytest.raises(InputError, match=r"micro_batches 5 .*at least 5 .*smallest .*has 4"):
        started(micro_batches=5)

"""Loss and Jacobian of visual-encoder optimisation against plain loops (eq. 8-10; docs/paper.md,
A15 to A19).
"""

from typing import Any

import pytest
import torch

from qvlm_lightning.calibration import LossWeights
from tests.wiring.learning import (
    Learning,
    answer_loss,
    channel_ranges,
    entropy_of_edges,
    jacobian,
    relative,
)
from tests.wiring.plain import Batch, counted

SAMPLES = 400


def ranges_of(module: Any) -> dict[str, Any]:
    """Return the searched range of every site, without what is learned on it."""
    return {
        s.name: (s.quantizer.low.clone(), s.quantizer.high.clone()) for s in module.structure.sites
    }


def ratios_of(module: Any) -> dict[str, Any]:
    """Return fresh leaves with the values of all that the module learns."""
    found: dict[str, Any] = {}
    for name in ("vision", "projector"):
        for site in module.structure.towers[name].sites:
            pair = site.quantizer.low_ratio, site.quantizer.high_ratio
            found[site.name] = [p.detach().clone().requires_grad_() for p in pair]
            for linear, x in site.linears.items():
                found[linear] = x.weight_quantizer.clip_ratio.detach().clone().requires_grad_()
    return found


def disturb(module: Any) -> None:
    """Move all that is learned away from 1, some bounds far enough to saturate much."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in module.quantizer_parameters():
            p.copy_(0.5 + 0.7 * torch.rand(p.shape, generator=generator))


def learning(module: Any, plain: Any) -> Learning:
    return Learning(plain().model, ratios_of(module))


def test_jacobian_weights_are_those_of_plain_loops(started, plain, toy_batches):
    module = started(entropy_samples=SAMPLES)
    disturb(module)
    found = module.loss.jacobian()
    expected = jacobian(learning(module, plain), toy_batches[0], ranges_of(module))
    for tower, weights in expected.items():
        assert found[tower] == pytest.approx(weights, rel=1e-4), tower
    assert len({round(w, 3) for weights in found.values() for w in weights}) == 6


@pytest.mark.parametrize("temperature", [0.25, 1.5, "paper"])
def test_terms_are_those_of_plain_loops(started, plain, toy_batches, temperature):
    weights = LossWeights(lambda_ent=0.3, lambda_err=0.7, eta=2.0)
    module = started(entropy_samples=SAMPLES, weights=weights, temperature=temperature)
    disturb(module)
    module.state.jacobian = {"vision": [0.5, 1.5], "language": [2.0, 1.0, 0.25, 3.0]}
    model, batch = learning(module, plain), toy_batches[1]
    terms = module.loss_terms(1, step=4)
    expected = reference_terms(module, model, batch, toy_batches, step=4)
    for name, value in expected.items():
        assert float(terms[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name


def reference_terms(
    module: Any, model: Learning, batch: Batch, batches: list[Batch], step: int
) -> dict[str, torch.Tensor]:
    trace = model.run(batch, ranges_of(module))
    with torch.no_grad():
        exact = model.run(batch, {})
        ranges = channel_ranges(model, batches)
    reg = answer_loss(trace, batch["labels"])
    seed = module.seed * 1_000_003 + step
    edges = entropy_of_edges(trace, batch, ranges, SAMPLES, seed, module.temperature)
    ent = sum(
        module.state.jacobian[tower][k] * d for tower, ds in edges.items() for k, d in enumerate(ds)
    )
    visual = relative(trace.features, exact.features, None)
    last = relative(trace.last_hidden, exact.last_hidden, counted("language", batch))
    err = visual + module.weights.eta * last
    total = reg + module.weights.lambda_ent * ent + module.weights.lambda_err * err
    return {"reg": reg, "ent": ent, "err": err, "total": total}


@pytest.mark.parametrize("term", ["reg", "ent", "err", "total"])
def test_gradients_of_all_that_is_learned_are_those_of_autograd(started, plain, toy_batches, term):
    """Bounds of every site and clip ratios of every weight of tower and projector."""
    weights = LossWeights(lambda_ent=0.3, lambda_err=0.7, eta=2.0)
    module = started(entropy_samples=SAMPLES, weights=weights)
    disturb(module)
    module.state.jacobian = {"vision": [0.5, 1.5], "language": [2.0, 1.0, 0.25, 3.0]}
    model = learning(module, plain)
    module.loss_terms(0, step=4)[term].backward()
    reference_terms(module, model, toy_batches[0], toy_batches, step=4)[term].backward()
    for name in ("vision", "projector"):
        for site in module.structure.towers[name].sites:
            low, high = model.ratios[site.name]
            pairs = [(site.quantizer.low_ratio, low), (site.quantizer.high_ratio, high)]
            clips = {n: x.weight_quantizer.clip_ratio for n, x in site.linears.items()}
            pairs += [(clip, model.ratios[n]) for n, clip in clips.items()]
            for found, expected in pairs:
                assert float(expected.grad.abs().sum()) > 0
                torch.testing.assert_close(
                    found.grad.double(), expected.grad.double(), rtol=1e-3, atol=1e-7
                )

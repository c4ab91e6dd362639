"""A rotated model computes what it did, for every family, and its sites see no outliers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qvlm_lightning.forward.samples import model_inputs
from qvlm_lightning.methods import Rotation
from qvlm_lightning.nn.parameters import Parameters
from qvlm_lightning.nn.surgery import quantize_model
from qvlm_lightning.quant.scheme import Scheme

TOLERANCE = 1e-4
CPU = torch.device("cpu")


def logits(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits.double()


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    return float((a - b).abs().max() / a.abs().max())


@pytest.fixture
def model(small: Any) -> nn.Module:
    """The small model with gains, biases and lone vectors that are not 1 and 0."""
    made = small.model()
    generator = torch.Generator().manual_seed(3)
    for parameter in made.parameters():
        if parameter.dim() == 1:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "online", ["needed", pytest.param("all", marks=SLOW), pytest.param("none", marks=SLOW)]
)
def test_a_rotated_model_computes_the_same(
    online: Any, small: Any, family: Any, model: Any, batches: list[dict[str, Tensor]]
) -> None:
    inputs = model_inputs(batches[0], CPU)
    before = logits(model, inputs)
    plain = {name: x.clone() for name, x in model.named_parameters()}
    structure = quantize_model(model, family, Scheme.parse("w4a4"))
    Rotation(online=online, seed=4).prepare(Parameters(model, {}), family, structure)
    assert distance(before, logits(model, inputs)) < TOLERANCE
    changed = {name for name, x in model.named_parameters() if not x.equal(plain.get(name, x * 0))}
    transformed = [site for site in structure.sites if site.transform is not None]
    assert bool(transformed) == (online != "none")
    if online == "all":
        assert len(transformed) == len(structure.sites)
    if online == "needed":  # every site is behind a rotation: its weights have changed
        for site in structure.sites:
            assert changed.issuperset(f"{name}.weight" for name in site.linears), site.name
    for site in transformed:  # a transform that does not run shows
        saved = site.transform.left.clone()
        site.transform.left.mul_(-1)
        if any(site.linears[n].weight.any() for n in site.linears):
            assert distance(before, logits(model, inputs)) > 10 * TOLERANCE, site.name
        site.transform.left.copy_(saved)

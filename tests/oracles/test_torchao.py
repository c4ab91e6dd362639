"""Scales of AWQ and SmoothQuant against torchao's observers, from the same inputs and weight.

In the extra ``oracles`` (CONTRIBUTING.md).
"""

from types import SimpleNamespace

import pytest
import torch

import qvlm_lightning.methods.smoothquant as smoothquant
from qvlm_lightning.methods.scale_search import magnitude_factors
from qvlm_lightning.models.wiring import Source

torchao = pytest.importorskip("torchao", reason="the extra 'oracles' is not installed")
pytestmark = pytest.mark.slow  # seconds of imports, where it is installed


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(48, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def inputs() -> torch.Tensor:
    """[tokens, channels], some of them large."""
    made = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    return made * torch.logspace(-1, 2, 64)


def test_the_scale_of_awq_is_one_of_our_candidates(weight, inputs):
    from torchao.prototype.awq.core import AWQObserver
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    observer = AWQObserver(weight, None, config)
    observer(inputs[:120], None)
    observer(inputs[120:], None)
    theirs = observer.calculate_qparams()
    candidates = magnitude_factors(inputs.abs().mean(dim=0), 20)
    distance = (candidates / theirs - 1).abs().amax(dim=1)
    assert float(distance.min()) < 1e-5
    assert int(distance.argmin()) > 0, "it scales at all"


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_the_scale_of_smoothquant_is_theirs(alpha, weight, inputs, monkeypatch):
    from torchao.prototype.smoothquant.core import SmoothQuantObserver

    observer = SmoothQuantObserver(weight, alpha)
    observer(inputs[:120])
    observer(inputs[120:])
    theirs = observer.calculate_qparams()[0]
    extremes = {"site": (inputs.amin(dim=0), inputs.amax(dim=0))}
    monkeypatch.setattr(smoothquant, "channel_extremes", lambda *_: extremes)
    site = SimpleNamespace(name="site", linears={"linear": None})
    source = Source("norm", "norm", ("linear",))
    block = SimpleNamespace(tensor=lambda name, decision: weight)
    group = SimpleNamespace(sites=[site], source=source)
    (mine,) = smoothquant.SmoothQuant([alpha]).factors(block, group, None)
    torch.testing.assert_close(mine.float(), theirs, rtol=1e-4, atol=1e-7)

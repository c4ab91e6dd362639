import math

import pytest
import torch
from torch.nn.functional import kl_div

from qvlm_lightning.metrics.divergence import answer_kl


def log_probs(seed: int, n: int = 12) -> torch.Tensor:
    return torch.randn(n, 7, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)


def test_hand_value():
    p, q = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    expected = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert math.isclose(answer_kl(p.log(), q.log()).item(), expected, rel_tol=1e-6)


def test_equals_torch():
    p, q = log_probs(0).double(), log_probs(1).double()
    expected = kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert torch.allclose(answer_kl(p, q), expected)


def test_is_zero_against_itself_and_never_negative():
    p = log_probs(0)
    assert (answer_kl(p, p) == 0).all()
    assert (answer_kl(p, (p + 1e-7)) >= 0).all()


def test_impossible_tokens_of_the_reference_cost_nothing():
    p = torch.tensor([[0.0, -torch.inf]])
    assert answer_kl(p, torch.tensor([[0.5, 0.5]]).log()).item() == pytest.approx(math.log(2))
    assert answer_kl(p, p).item() == 0

"""Text fidelity against loops over single tokens."""

import math

import pytest
import torch

from qvlm_lightning.metrics.fidelity import agreement, perplexity, token_kl, token_loss

B, T, V = 3, 7, 11


def draw(seed: int) -> torch.Tensor:
    return 3 * torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def mask() -> torch.Tensor:
    """Texts of 7, 4 and 2 tokens, padded on either side."""
    return torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1]])


def probabilities(logits: torch.Tensor) -> list[float]:
    weights = [math.exp(x) for x in logits.tolist()]
    return [weight / sum(weights) for weight in weights]


def test_divergence_is_that_of_a_loop(mask):
    reference, logits = draw(0), draw(1)
    expected = []
    for b in range(B):
        for t in range(T):
            if mask[b, t]:
                p, q = probabilities(reference[b, t]), probabilities(logits[b, t])
                expected.append(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
    found = token_kl(reference, logits, mask)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_divergence_does_not_depend_on_parts_nor_on_what_is_masked(mask, monkeypatch):
    whole = token_kl(draw(0), draw(1), mask)
    monkeypatch.setattr("qvlm_lightning.metrics.fidelity._PART", 2)
    other = draw(1).masked_fill(mask[..., None] == 0, torch.nan)
    assert torch.equal(token_kl(draw(0), other, mask), whole)


def test_divergence_of_log_probabilities_is_that_of_logits(mask):
    found = token_kl(draw(0).log_softmax(-1), draw(1) + 5, mask)
    assert torch.allclose(found, token_kl(draw(0), draw(1), mask), atol=1e-5)


def test_loss_is_that_of_a_loop(mask):
    logits = draw(2)
    tokens = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(3))
    expected = []
    for b in range(B):
        for t in range(1, T):
            if mask[b, t] and mask[b, t - 1]:
                expected.append(-math.log(probabilities(logits[b, t - 1])[tokens[b, t]]))
    losses = token_loss(logits, tokens, mask)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)
    mean = sum(expected) / len(expected)
    assert perplexity(losses) == pytest.approx(math.exp(mean), rel=1e-5)


def test_a_broken_model_still_has_a_perplexity():
    assert math.isfinite(perplexity(torch.tensor([1e6])))


@pytest.mark.parametrize(
    ("answer", "reference"),
    [([1, 2, 3], [1, 2, 3]), ([1, 2], [1, 2, 3]), ([4, 2, 3], [1, 2]), ([], [1]), ([], [])],
)
def test_agreement_is_that_of_a_loop(answer, reference):
    found = agreement(answer, reference)
    same, first = 0, None
    for place in range(max(len(answer), len(reference))):
        both = place < len(answer) and place < len(reference)
        if both and answer[place] == reference[place]:
            same += 1
        elif first is None:
            first = place
    assert (found.same, found.first_difference) == (same, first)
    assert found.length == max(len(answer), len(reference))
    assert found.whole == (answer == reference)
    assert found.share == (same / found.length if found.length else 1)

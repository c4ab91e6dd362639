"""Which tokens of a sample a percentile is taken of (docs/paper.md, A11)."""

from collections import Counter

import pytest
import torch

from qvlm_lightning.quant.observers import RangeObserver

TOKENS, KEPT, SAMPLES = 40, 10, 64


def kept_places(granularity: str, seed: int = 0) -> list[list[int]]:
    """Return per sample the tokens (or channels) that are kept, read off values that name them."""
    observer = RangeObserver(
        granularity, seed=seed, max_tokens=KEPT * SAMPLES, expected_samples=SAMPLES
    )
    x = torch.arange(float(TOKENS)).repeat(SAMPLES, 1)
    # tokens name themselves; of a sample per position, channels do
    x = x[:, None, :].expand(-1, TOKENS, -1) if granularity == "position" else x[..., None]
    observer.update(x, None, range(SAMPLES))
    kept = observer.state()["kept"]
    return [(k[0] if granularity == "position" else k[:, 0]).int().tolist() for k in kept]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "position"])
def test_every_sample_keeps_places_of_its_own(granularity):
    kept = kept_places(granularity)
    assert all(len(set(places)) == KEPT for places in kept)
    assert len({tuple(sorted(places)) for places in kept}) == SAMPLES
    assert kept == kept_places(granularity)
    assert kept != kept_places(granularity, seed=1)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "position"])
def test_every_place_is_kept_equally_often(granularity):
    """Of 64 samples a token is in 16 on average, with a deviation of 3.5."""
    counts = Counter(place for places in kept_places(granularity) for place in places)
    assert set(counts) == set(range(TOKENS))
    assert max(counts.values()) < 32
    assert min(counts.values()) > 3


def test_a_tail_that_is_rare_in_every_sample_is_not_missed():
    """One token in forty is large, at the same place in all samples: its share of the pool must be
    about its share of the tokens. Were it always kept, or never, p = 0.98 would not clip it, or
    p = 0.95 would not reach its neighbour.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(SAMPLES, TOKENS, 1, generator=generator)
    x[:, 0] += 100
    x[:, TOKENS - 1] += 100
    observer = RangeObserver("tensor", max_tokens=KEPT * SAMPLES, expected_samples=SAMPLES)
    observer.update(x, None, range(SAMPLES))
    _, high = observer.ranges([1.0, 0.97, 0.92])
    assert high[1] > 100  # 2 of 40 tokens are 5 %
    assert high[2] < 1

"""What is left of an observer answers as the observer does."""

import pytest
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant.observers import RangeObserver
from qvlm_lightning.quant.tables import RangeTable

ASKED = [0.99, 0.95]


@pytest.mark.parametrize("granularity", ["tensor", "channel", "position"])
def test_ranges_are_those_of_the_observer(granularity):
    observer = RangeObserver(granularity, expected_samples=4, max_tokens=64)
    x = torch.randn(4, 30, 6, generator=torch.Generator().manual_seed(0))
    observer.update(x, None, range(4))
    table = RangeTable(observer, ASKED)
    for percentiles in ([1.0], ASKED, [1.0, *ASKED], [0.95]):
        for ours, theirs in zip(
            table.ranges(percentiles), observer.ranges(percentiles), strict=True
        ):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(table.channel_range(), observer.channel_range(), strict=True):
        assert torch.equal(ours, theirs)
    assert table.tokens == observer.tokens == 120
    assert set(table.sample().tolist()) <= set(x.flatten().tolist())
    assert table.sample(10).numel() <= 10


def test_other_percentiles_are_refused():
    observer = RangeObserver("tensor")
    observer.update(torch.randn(1, 5, 2), None, [0])
    with pytest.raises(
        InputError, match=r"percentile 0\.9 was not kept.*allowed: 1\.0, 0\.99, 0\.95"
    ):
        RangeTable(observer, ASKED).ranges([0.9])

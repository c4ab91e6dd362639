"""Where every quantizer stands before anything is searched (docs/paper.md, A11 and A14)."""

import pytest
import torch

from qvlm_lightning.quant.scheme import Scheme
from tests.wiring.plain import LINEARS, tables


@pytest.mark.parametrize("mode", ["static_tensor", "static_channel", "dynamic_token"])
def test_every_site_starts_at_the_extremes_of_all_tokens_that_count(
    calibrated, plain, toy_batches, mode
):
    calibrator = calibrated(scheme=Scheme.parse("w4a4", activation_mode=mode))
    expected = tables(plain(mode=mode), toy_batches, [1.0])
    assert {site.name for site in calibrator.structure.sites} == set(LINEARS)
    for site in calibrator.structure.sites:
        (low, high) = expected[site.name][0]
        assert torch.equal(site.quantizer.low, low)
        assert torch.equal(site.quantizer.high, high)


def test_statistics_are_those_of_full_precision_whenever_they_are_taken(calibrated):
    """A resumed run takes them again, with ranges in place and quantizers on."""
    calibrator = calibrated()
    sites, statistics = calibrator.structure.sites, calibrator.statistics
    before = {site.name: statistics.ranges(site, [1.0, 0.98]) for site in sites}
    calibrator.structure.enable(True)
    calibrator.collect()
    for site in sites:
        again = statistics.ranges(site, [1.0, 0.98])
        assert all(torch.equal(a, b) for a, b in zip(again, before[site.name], strict=True))
    assert set(calibrator.structure.enabled().values()) == {True}

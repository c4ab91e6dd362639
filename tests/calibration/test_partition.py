"""Proxies, options and towers of the partition; P4 (docs/paper.md)."""

import math

import pytest
import torch

from qvlm_lightning.errors import InputError
from qvlm_lightning.methods import JointSearch, MinMax
from qvlm_lightning.methods.proxies import (
    ConditionalEntropy,
    DiscretizationErrorDifference,
    Entropy,
    MutualInformation,
    QuantizationError,
)
from qvlm_lightning.quant.partition import excess, partition_blocks, partition_blocks_dp
from qvlm_lightning.quant.scheme import PartScheme, Scheme

TOWERS = ("vision", "projector", "language")
PROXIES = {
    "conditional entropy": ConditionalEntropy,
    "entropy": Entropy,
    "mutual information": MutualInformation,
    "quantization error": QuantizationError,
    "ded": lambda: DiscretizationErrorDifference(JointSearch([1.0, 0.98], per="layer")),
}


# --- proxies and options --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROXIES)
def test_every_proxy_is_finite_and_leaves_the_quantizers_as_they_were(calibrated, name):
    calibrator = calibrated()
    for on in (False, True):
        calibrator.structure.enable(on)
        calibrator.repartition(TOWERS, PROXIES[name]())
        assert set(calibrator.structure.enabled().values()) == {on}
    state = calibrator.state
    assert {tower: len(edges) for tower, edges in state.dependency.items()} == {
        "vision": 1,
        "language": 3,
    }
    for edges in state.dependency.values():
        assert all(isinstance(e, float) and math.isfinite(e) and e >= 0 for e in edges)
    sites = calibrator.structure.sites
    assert all(float(site.quantizer.percentile) == 1 for site in sites)


def test_entropy_is_conditional_entropy_plus_mutual_information(calibrated):
    calibrator = calibrated()
    found = []
    for name in ("conditional entropy", "mutual information", "entropy"):
        calibrator.repartition(["language"], PROXIES[name]())
        found.append(calibrator.state.dependency["language"])
    for conditional, mutual, entropy in zip(*found, strict=True):
        assert 0 <= conditional <= entropy <= math.log(16)
        assert conditional + mutual == pytest.approx(entropy)


def test_image_and_text_tokens_are_reported_apart(calibrated):
    calibrator = calibrated()
    calibrator.repartition(TOWERS, ConditionalEntropy())
    kinds = calibrator.state.dependency_by_kind
    assert set(kinds["language"]) == {"image", "text"}
    assert kinds["vision"] == {}
    assert all(0 <= e <= math.log(16) for edges in kinds["language"].values() for e in edges)


def test_calibration_without_images_in_the_decoder_reports_text_alone(start, build, make):
    """A kind that does not occur has no distribution; it is left out, not reported as 0."""
    batches = [make(0), make(4)]
    calibrator = start(build(), batches)
    calibrator.batches = [make(0, blind=(0, 1, 2, 3)), make(4, blind=(0, 1, 2, 3))]
    calibrator.repartition(["language"], ConditionalEntropy())
    assert set(calibrator.state.dependency_by_kind["language"]) == {"text"}


@pytest.mark.parametrize("algorithm", ["greedy", "dp"])
@pytest.mark.parametrize("threshold", ["mean", "quantile:0.3", "quantile:1", 0.0, 1.5, 99.0])
@pytest.mark.parametrize("max_depth", [1, 2, 4])
def test_options_reach_the_partition(calibrated, algorithm, threshold, max_depth, monkeypatch):
    calibrator = calibrated(seed=1)
    calibrator.repartition(
        ["language"], ConditionalEntropy(), threshold, max_depth, algorithm, samples=2000
    )
    edges, h0 = calibrator.state.dependency["language"], calibrator.state.threshold["language"]
    expected = {
        "mean": sum(edges) / 3,
        "quantile:0.3": float(torch.tensor(edges, dtype=torch.float64).quantile(0.3)),
        "quantile:1": max(edges),
    }
    assert h0 == pytest.approx(expected.get(threshold, threshold))
    function = {"greedy": partition_blocks, "dp": partition_blocks_dp}[algorithm]
    blocks = calibrator.state.partition["language"]
    assert blocks == [list(block) for block in function(edges, h0, max_depth)]
    assert max(last - first + 1 for first, last in blocks) <= max_depth
    if threshold == 99.0 or max_depth == 1:
        assert blocks == [[i, i] for i in range(4)]


def test_dp_gains_at_least_as_much_as_greedy(calibrated):
    for seed in range(6):
        calibrator = calibrated(seed=seed)
        gains = []
        for algorithm in ("greedy", "dp"):
            calibrator.repartition(["language"], ConditionalEntropy(), algorithm=algorithm)
            state = calibrator.state
            blocks = [tuple(block) for block in state.partition["language"]]
            edges, h0 = state.dependency["language"], state.threshold["language"]
            gains.append(excess(blocks, edges, h0))
        assert gains[1] >= gains[0]


@pytest.mark.parametrize("threshold", ["median", "quantile:2", float("nan"), "quantile:"])
def test_a_wrong_threshold_is_refused(calibrated, threshold):
    with pytest.raises(InputError, match="threshold"):
        calibrated().repartition(["language"], ConditionalEntropy(), threshold)


# --- towers ---------------------------------------------------------------------------------------


def test_p4_blocks_never_cross_towers(calibrated):
    """A threshold below every edge merges all that may be merged."""
    calibrator = calibrated()
    calibrator.repartition(TOWERS, ConditionalEntropy(), threshold=-1.0, max_depth=9)
    assert calibrator.state.partition == {
        "vision": [[0, 1]],
        "projector": [[0, 0]],
        "language": [[0, 3]],
    }
    calibrator.search(TOWERS, MinMax(), "all")
    blocks = [(b["tower"], b["first"], b["last"]) for b in calibrator.state.objective]
    assert blocks == [("vision", 0, 1), ("projector", 0, 0), ("language", 0, 3)]


@pytest.mark.parametrize(
    ("scheme", "tower"),
    [
        (Scheme.parse("w4a4", ignore=(r"language_model\.layers\.2\.",)), "language"),
        (Scheme.parse("w4a4", ignore=(r"encoder\.layers\.0\.",)), "vision"),
        (Scheme(vision=PartScheme(16, 16)), "vision"),
    ],
    ids=["decoder layer", "tower layer", "whole tower"],
)
def test_units_without_sites_leave_a_tower_of_single_layers(calibrated, scheme, tower):
    calibrator = calibrated(scheme)
    calibrator.repartition(TOWERS, ConditionalEntropy(), threshold=-1.0)
    count = len(calibrator.structure.towers[tower].units)
    assert calibrator.state.partition[tower] == [[i, i] for i in range(count)]
    assert tower not in calibrator.state.dependency
    other = {"language": "vision", "vision": "language"}[tower]
    assert len(calibrator.state.partition[other]) < len(calibrator.structure.towers[other].units)
    calibrator.search(TOWERS, JointSearch([1.0, 0.98], per="layer"), "all")
    assert set(calibrator.state.percentiles) == {s.name for s in calibrator.structure.sites}


@pytest.mark.parametrize("name", PROXIES)
def test_e8_no_proxy_looks_at_padding(start, build, toy_batches, name):
    found = []
    for token in (0, 17):
        padded = [dict(b, input_ids=b["input_ids"].clone()) for b in toy_batches]
        for batch in padded:
            batch["input_ids"][batch["attention_mask"] == 0] = token
        calibrator = start(build(), padded)
        calibrator.repartition(["language"], PROXIES[name]())
        found.append(calibrator.state.dependency["language"])
    assert found[0] == found[1]

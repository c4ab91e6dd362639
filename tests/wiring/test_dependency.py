"""Dependency and partition against plain loops: which triples, whose codes, behind which towers
(eq. 4-7; docs/paper.md, A2 and A9).
"""

import pytest

from qvlm_lightning.methods import JointSearch, SequentialSearch
from qvlm_lightning.methods.proxies import (
    ConditionalEntropy,
    DiscretizationErrorDifference,
    Entropy,
    MutualInformation,
    QuantizationError,
)
from tests.calibration.conftest import IMAGE
from tests.wiring.counting import (
    activations,
    blocks_of,
    codes_of,
    conditional_entropy,
    draw,
    edge_pairs,
    kinds,
)
from tests.wiring.plain import TOWERS, UNITS, Batch, Plain, counted, sites_of, tables
from tests.wiring.searching import PlainSearch, squared_error

SAMPLES = 3000


def pairs_of(plain: Plain, tower: str, batches: list[Batch], seed: int, ranges=None):
    exact = activations(plain, tower, batches, {})
    seen = activations(plain, tower, batches, ranges or {})
    triples = draw(len(exact[0]), exact[0][0].shape[1], SAMPLES, seed)
    return edge_pairs(codes_of(exact, seen), triples)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("tower", ["vision", "language"])
def test_dependency_is_that_of_plain_loops(calibrated, plain, toy_batches, tower, seed):
    calibrator = calibrated(batches=toy_batches, draw=seed)
    calibrator.repartition([tower], ConditionalEntropy(), samples=SAMPLES)
    edges = pairs_of(plain(), tower, toy_batches, seed)
    expected = [conditional_entropy([(u, v) for u, v, *_ in pairs]) for pairs in edges]
    assert calibrator.state.dependency[tower] == pytest.approx(expected, abs=1e-9)
    threshold = sum(expected) / len(expected)
    assert calibrator.state.threshold[tower] == pytest.approx(threshold)
    assert calibrator.state.partition[tower] == blocks_of(expected, threshold, 3)


def test_image_and_text_tokens_apart_are_those_of_plain_loops(calibrated, plain, toy_batches):
    calibrator = calibrated(batches=toy_batches)
    calibrator.repartition(["language"], ConditionalEntropy(), samples=SAMPLES)
    of_image, edges = kinds(toy_batches, IMAGE), pairs_of(plain(), "language", toy_batches, 0)
    for kind in (True, False):
        expected = [
            conditional_entropy([(u, v) for u, v, s, t in pairs if of_image[s][t] == kind])
            for pairs in edges
        ]
        name = "image" if kind else "text"
        found = calibrator.state.dependency_by_kind["language"][name]
        assert found == pytest.approx(expected, abs=1e-9)


def test_entropy_and_mutual_information_are_those_of_plain_loops(calibrated, plain, toy_batches):
    calibrator = calibrated(batches=toy_batches)
    for edge, pairs in enumerate(pairs_of(plain(), "language", toy_batches, 0)):
        next_alone = conditional_entropy([(0, v) for _, v, *_ in pairs])
        given = conditional_entropy([(u, v) for u, v, *_ in pairs])
        for proxy, expected in ((Entropy(), next_alone), (MutualInformation(), next_alone - given)):
            calibrator.repartition(["language"], proxy, samples=SAMPLES)
            found = calibrator.state.dependency["language"][edge]
            assert found == pytest.approx(expected, abs=1e-9)


def test_a9_a_searched_tower_is_quantized_the_measured_one_is_not(calibrated, plain, toy_batches):
    """Codes of a full-precision decoder behind the quantized tower and projector."""
    calibrator, model, method = calibrated(batches=toy_batches), plain(), SequentialSearch()
    calibrator.search(TOWERS, method, "first")
    calibrator.repartition(["language"], ConditionalEntropy(), samples=SAMPLES)
    found = tables(model, toy_batches, method.percentiles)
    search = PlainSearch(model, toy_batches[:2], found, len(method.percentiles))
    search.run({"vision": [[0, 0], [1, 1]], "projector": [[0, 0]]})
    ranges = {site: found[site][index] for site, index in search.chosen.items()}
    edges = pairs_of(model, "language", toy_batches, 0, ranges)
    expected = [conditional_entropy([(u, v) for u, v, *_ in pairs]) for pairs in edges]
    assert calibrator.state.dependency["language"] == pytest.approx(expected, abs=1e-9)


# --- proxies that run pairs of layers -------------------------------------------------------------


def pair_search(plain: Plain, batches: list[Batch], grid: list[float]) -> PlainSearch:
    """Return a search in which nothing is chosen: whatever lies before a pair is exact (A9)."""
    return PlainSearch(plain, batches[:2], tables(plain, batches, grid), len(grid))


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_quantization_error_is_that_of_a_pair_behind_an_exact_prefix(
    calibrated, plain, toy_batches, tower
):
    """Plain error of min-max at the pair's output, relative to the output's mean square."""
    calibrator, search = calibrated(), pair_search(plain(), toy_batches, [1.0])
    calibrator.repartition([tower], QuantizationError())
    search.normalized = False
    for edge, found in enumerate(calibrator.state.dependency[tower]):
        sites = [*sites_of(tower, edge), *sites_of(tower, edge + 1)]
        error = search.error(tower, edge + 1, dict.fromkeys(sites, 0))
        power = number = 0.0
        for batch, exact in zip(toy_batches, search.exact, strict=False):
            target = exact.outputs[list(UNITS[tower])[edge + 1]]
            a, b = squared_error(target, 0 * target, counted(tower, batch))
            power, number = power + a, number + b
        assert found == pytest.approx(error / (power / number), rel=1e-5)


def test_discretisation_error_difference_is_that_of_plain_loops(calibrated, plain, toy_batches):
    method = JointSearch([1.0, 0.995, 0.99, 0.985, 0.98], per="layer")
    calibrator, search = calibrated(), pair_search(plain(), toy_batches, method.percentiles)
    calibrator.repartition(["language"], DiscretizationErrorDifference(method))
    for edge, found in enumerate(calibrator.state.dependency["language"]):
        choices = (
            search.sequential("language", edge, edge + 1, "layer"),
            search.joint("language", edge, edge + 1, "layer", 155),
        )
        sequential, joint = (search.error("language", edge + 1, c) for c in choices)
        assert found == pytest.approx(sequential - joint, rel=1e-4, abs=1e-9)
    assert max(calibrator.state.dependency["language"]) > 0

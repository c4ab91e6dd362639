"""Means over calibration seeds, by hand."""

import pytest

from qvlm_lightning.results.means import seed_means, t95


def row(value: float, seed: int | None = 0, **other) -> dict:
    made = {
        **{"model": "tiny", "variant": "cdm", "method": "cdm", "scheme": "w4a4", "seed": seed},
        **{"activation_mode": "static_tensor", "outlier_scale": 1.0, "sink_scale": 1.0},
        **{"stress": False},
        **{"split": "test", "objective": "plain", "candidates": [1.0, 0.98]},
        **{"layer_forwards": 100, "search_seconds": 2.0, "task": "overall", "metric": "accuracy"},
        **{"value": value, "ci_low": value - 1, "ci_high": value + 1, "n": 50},
    }
    return made | other


def test_mean_deviation_and_interval_of_three_seeds():
    # mean 82, squared deviations 4 + 1 + 9 over 2 degrees of freedom, 4.303 * sqrt(7 / 3)
    (found,) = seed_means([row(80.0), row(81.0, 1), row(85.0, 2)])
    assert found["value"] == 82.0
    assert found["sd"] == pytest.approx(7**0.5)
    assert found["ci_high"] - 82 == pytest.approx(6.5730, abs=1e-4)
    assert 82 - found["ci_low"] == pytest.approx(6.5730, abs=1e-4)
    assert (found["low"], found["high"], found["seeds"]) == (80.0, 85.0, [0, 1, 2])
    assert (found["n"], found["objective"], found["candidates"]) == (50, "plain", [1.0, 0.98])
    assert "seed" not in found


def test_of_one_seed_there_is_no_deviation():
    full = row(90.0, None, method="fp", variant="fp", layer_forwards=None, search_seconds=None)
    for given, seeds in ((row(80.0, 3), [3]), (full, [])):
        (found,) = seed_means([given])
        assert (found["value"], found["seeds"]) == (given["value"], seeds)
        assert {found[key] for key in ("sd", "ci_low", "ci_high")} == {None}


def test_costs_are_means_and_what_differs_is_not_said():
    (found,) = seed_means(
        [row(1.0), row(2.0, 1, layer_forwards=300, search_seconds=4.0, objective="normalized")]
    )
    assert (found["layer_forwards"], found["search_seconds"]) == (200, 3.0)
    assert (found["objective"], found["candidates"]) == (None, [1.0, 0.98])


@pytest.mark.parametrize(
    "other",
    [
        *({"split": "development"}, {"variant": "random-blocks"}, {"scheme": "w8a8"}),
        *({"activation_mode": "dynamic_token"}, {"outlier_scale": 10.0}, {"sink_scale": 10.0}),
        *({"method": "rtn"}, {"task": "counting"}, {"metric": "kl"}),
    ],
)
def test_only_seeds_are_averaged(other):
    found = seed_means([row(1.0), row(3.0, 1, **other)])
    assert [mean["value"] for mean in found] == [1.0, 3.0]


def test_many_seeds_have_the_quantile_of_ten():
    assert [t95(1), t95(2), t95(10), t95(11)] == [12.706, 4.303, 2.228, 2.228]

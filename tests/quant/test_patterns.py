"""Regular expressions over names."""

import time

import pytest

from qvlm_lightning.errors import InputError
from qvlm_lightning.quant import patterns
from qvlm_lightning.quant.patterns import check_pattern, matches


def test_a_pattern_is_searched():
    assert matches(r"layers\.(0|1)\.mlp", "model.layers.1.mlp.up_proj")
    assert not matches(r"layers\.(0|1)\.mlp", "model.layers.11.mlp.up_proj")


@pytest.mark.parametrize("pattern", ["(", "*", 3, "(" * 10_000])
def test_what_is_none_is_refused(pattern):
    with pytest.raises(ValueError, match=r"."):
        check_pattern(pattern)


def test_a_pattern_that_takes_years_is_stopped(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    start = time.perf_counter()
    with pytest.raises(InputError, match="takes too long on the name"):
        matches("(a|aa)+$", "a" * 200 + "b")
    assert time.perf_counter() - start < 2

"""The benchmark of generation runs, on its smallest model."""

import sys
from pathlib import Path

import pytest
import torch

from qvlm_lightning.kernels import PackedModel
from qvlm_lightning.kernels.extension import extension

ROOT = Path(__file__).parents[1]


@pytest.fixture
def generation(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import generation as benchmark

    yield benchmark
    for name in ("generation", "_common"):
        sys.modules.pop(name, None)


@torch.no_grad()
def test_a_packed_model_is_measured(generation):
    """With its head and its keys and values at 8 bits."""
    row = generation.run("tiny", "w4a16", 2, 2, head_bits=8, kv_cache="int8")
    layers, width, mlp = generation.SIZES["tiny"][:3]
    weights = layers * (4 * width**2 + 3 * width * mlp) / 2 + generation.VOCABULARY * width
    assert row["of packed layers MiB"] >= weights / 2**20 > 0.8 * row["of packed layers MiB"]
    patches = (112 // 14) ** 2
    assert row["prompt tokens"] == 1 + patches + 2
    stored = 2 * layers * width * (row["prompt tokens"] + 2)
    assert row["keys and values MiB"] == pytest.approx(stored / 2**20, abs=0.06)  # of .27
    assert row["decode ms"] > 0
    assert ("extension" in row["kernels"]) == (extension() is not None)
    assert (row["attention"] == "extension") == (extension() is not None)


def test_layers_that_write_their_weight_out_are_named(generation, monkeypatch):
    monkeypatch.setattr(generation, "extension", lambda: object())
    kernels = {"a": "dequantize", "b": "extension"}

    class Layer:
        def __init__(self, name: str) -> None:
            self.name = name

        def kernel(self, rows: int) -> "Layer":
            assert rows == 1
            return self

    packed = PackedModel({name: Layer(kernel) for name, kernel in kernels.items()})
    assert generation.few_rows_written_out(packed) == ["a"]
    monkeypatch.setattr(generation, "extension", lambda: None)
    assert generation.few_rows_written_out(packed) == []


def test_answers_that_differ_are_counted_with_their_margins(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import answers as benchmark

    said = {
        False: [([1], 0.5), ([2, 3], 0.25), ([4], 2.0), ([5], 0.125)],
        True: [([1], 0.4), ([2, 9], 0.3), ([4], 2.0), ([6], 0.01)],
    }
    monkeypatch.setattr(benchmark, "answers", lambda s, f, packed: (said[packed], 1.0 + packed))
    row = benchmark.row(tmp_path / "mine" / "artifact", ["?"] * 4)
    assert row["artifact"] == "mine"
    assert row["equal answers %"] == 50
    assert row["margins of the others"] == "0.125, 0.250"
    assert (row["seconds simulated"], row["seconds packed"]) == (1.0, 2.0)
    for name in ("answers", "_common"):
        sys.modules.pop(name, None)

"""The benchmark of generation runs, on its smallest model."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from qvlm_lightning.kernels import PackedModel
from qvlm_lightning.kernels.extension import extension
from qvlm_lightning.nn.linear import QuantLinear
from qvlm_lightning.nn.quantizer import ActivationQuantizer

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


@torch.no_grad()
def test_parts_of_a_token_are_the_extensions(generation, monkeypatch):
    if extension() is None:
        pytest.skip("no extension here")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import parts as benchmark

    from qvlm_lightning.kernels.extension import Extension

    before = Extension.products
    row = benchmark.measured("tiny", "w4a4", 2, 5)
    assert min(row[name] for name in (*benchmark.PARTS, "all else")) > 0
    assert Extension.products is before
    monkeypatch.setattr(PackedModel, "used", lambda self: {"extension": 1, "onednn-held": 2})
    with pytest.raises(RuntimeError, match="layers ran onednn-held"):
        benchmark.measured("tiny", "w4a4", 1, 5)
    assert Extension.products is before
    sys.modules.pop("parts", None)


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


def test_noise_moves_quantized_layers_and_no_others(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import answers as benchmark

    site = ActivationQuantizer(16, "dynamic_token", (), 1)
    mine = QuantLinear.from_linear(nn.Linear(4, 4), site, True, 4, None, False)
    model = nn.ModuleDict({"plain": nn.Linear(4, 4), "mine": mine})
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    before = {name: layer(x) for name, layer in model.items()}
    benchmark.disturb(model, 1e-3)
    assert torch.equal(model["plain"](x), before["plain"])
    moved = ((model["mine"](x) - before["mine"]) / before["mine"]).abs()
    assert 1e-4 < float(moved.mean()) < 2e-3
    for name in ("answers", "_common"):
        sys.modules.pop(name, None)


def test_two_versions_of_the_extension_take_turns(monkeypatch):
    """This one against itself: no difference, and a ratio of times."""
    if extension() is None:
        pytest.skip("no extension here")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import sources as benchmark

    from qvlm_lightning.kernels.extension import from_sources

    monkeypatch.setattr(benchmark, "BEYOND_CACHES", 2**16)
    same = from_sources(ROOT / "qvlm_lightning" / "kernels")
    for name in benchmark.FORMATS:
        row = benchmark.measured(name, (64, 256), same, 4, 1e10)
        assert row["difference"] == "0e+00"
        assert 0.1 < row["times faster"] < 10
    for name in ("sources", "_common"):
        sys.modules.pop(name, None)


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
    assert row["margins move by"] == pytest.approx((0.1 + 0.05 + 0 + 0.115) / 4, abs=1e-4)
    for name in ("answers", "_common"):
        sys.modules.pop(name, None)

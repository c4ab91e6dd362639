"""Triton programs against the float64 reference.

They run on a GPU, or without one in Triton's interpreter:

    pip install triton; TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton.py
"""

import os
import sys
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from qvlm_lightning.kernels import self_test, torch_kernels, triton_kernels
from qvlm_lightning.kernels.table import Case, holding_of
from qvlm_lightning.nn.packed_input import InputCodes
from qvlm_lightning.nn.packed_linear import Kernel
from qvlm_lightning.nn.packing import PackedWeight, pack_codes

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_triton = pytest.mark.skipif(
    triton_kernels.programs() is None or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs Triton, and a GPU or TRITON_INTERPRET=1",
)
SHAPES = [((37, 96), 3), ((16, 50), 1), ((20, 128), 4), ((5, 130), 1)]


def layer_of(bits: int, features: tuple[int, int], groups: int, symmetric: bool):
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, features, generator=draw)
    scale = torch.rand(features[0], groups, generator=draw) + 0.5
    zeros = pack_codes(torch.randint(0, 2**bits, (scale.numel(),), generator=draw), bits)
    packed = pack_codes(codes, bits)
    weight = PackedWeight(packed, scale, None if symmetric else zeros, bits, features).to(DEVICE)
    return weight, self_test._layer(weight, self_test.dense, Kernel("test", None, lambda *x: x[1]))


def error(layer, given) -> float:
    """Return the largest error of a product, by the largest output."""
    exact = torch_kernels.reference(layer, given)
    difference = triton_kernels.few_rows(layer, given).double() - exact
    return float(difference.abs().max() / exact.abs().max())


@needs_triton
@pytest.mark.parametrize("bits", range(2, 9))
def test_products_and_weights_are_those_of_the_reference(bits):
    for (features, groups), symmetric in product(SHAPES, (False, True)):
        weight, layer = layer_of(bits, features, groups, symmetric)
        x = torch.randn(3, features[1], generator=torch.Generator().manual_seed(0)).to(DEVICE)
        assert error(layer, x) < 1e-6
        made = triton_kernels.programs().dequantized(layer, torch.float32)
        assert torch.equal(made, weight.dequantized(torch.float32))


@needs_triton
def test_codes_of_inputs_are_multiplied_as_whole_numbers():
    _, layer = layer_of(4, (16, 64), 2, symmetric=False)
    codes = torch.randint(0, 256, (2, 64), generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([[0.5], [2.0]])
    given = InputCodes(codes.to(torch.uint8), scale, 127, torch.float32).to(DEVICE)
    assert error(layer, given) < 1e-6


def kernels_of(monkeypatch, case: Case, programs: object) -> list[tuple[str, int | None]]:
    """Return name and rows of the kernels of a case on a GPU, all of which pass their test."""
    monkeypatch.setattr(triton_kernels, "programs", lambda: programs)
    monkeypatch.setattr("qvlm_lightning.kernels.table.refusal", lambda *_: None)
    monkeypatch.setattr(Case, "of", classmethod(lambda *_: case))
    weight = self_test.sample_weight(case.weight_bits, 1, case.dtype)
    holding, refused = holding_of(weight, case.activation_bits)
    assert (holding.name, refused) == ("dense", [])
    return [(kernel.name, kernel.most_rows) for kernel in holding.kernels]


@pytest.mark.parametrize(
    ("activations", "outputs", "programs", "expected"),
    [
        (16, 256, object(), [("triton", 16), ("dequantize", None)]),
        (8, 256, object(), [("triton", 16), ("int_mm", None)]),
        (8, 250, object(), [("triton", 16), ("dequantize", None)]),  # int8 cores take eights
        (8, 256, None, [("dequantize", 16), ("int_mm", None)]),
        (16, 256, None, [("dequantize", None)]),
    ],
)
def test_a_gpu_gets_its_own_kernels(monkeypatch, activations, outputs, programs, expected):
    case = Case(4, activations, (outputs, 512), 512, torch.bfloat16, "cuda")
    assert kernels_of(monkeypatch, case, programs) == expected


def test_without_triton_there_are_no_programs(monkeypatch):
    triton_kernels.programs.cache_clear()
    monkeypatch.setitem(sys.modules, "qvlm_lightning.kernels.triton_dense", None)
    monkeypatch.delattr("qvlm_lightning.kernels.triton_dense", raising=False)
    try:
        assert triton_kernels.programs() is None
    finally:
        triton_kernels.programs.cache_clear()


@pytest.mark.parametrize("runs", [False, True])
def test_programs_that_do_not_run_are_none(monkeypatch, runs):
    """As where Triton is installed and finds no compiler."""
    import qvlm_lightning.kernels as room

    stand_in = SimpleNamespace(runs=lambda: runs)
    monkeypatch.setitem(sys.modules, "qvlm_lightning.kernels.triton_dense", stand_in)
    monkeypatch.setattr(room, "triton_dense", stand_in, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    triton_kernels.programs.cache_clear()
    try:
        assert (triton_kernels.programs() is stand_in) == runs
    finally:
        triton_kernels.programs.cache_clear()

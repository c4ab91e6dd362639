"""Products of the C++ extension that round inputs in bfloat16, against exact ones."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qvlm_lightning.kernels import extension as built
from qvlm_lightning.nn.packing import PackedWeight, pack_codes

FINE = 1.5e-4  # of the size of terms; rounding inputs to bfloat16 costs ten times as much
EXACT = 5e-6  # sums in float32, of which zero points take off as much again


@pytest.fixture(scope="module", params=["avx2", "avx512"])
def product(request):
    """(weight, rows) -> products, float64."""
    found = built.extension()
    if found is None:
        pytest.skip(f"no extension here: {built.why_no_extension()}")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("inputs are rounded with AVX2 only")
    if request.param == "avx512" and not found.has_wide:
        pytest.skip("this processor has no AVX-512 VNNI and VBMI")
    found.use_wide(request.param == "avx512")
    yield lambda weight, x: found.products([weight], x)[0].double()
    found.use_wide(True)


def weight_of(
    bits: int, outputs: int, inputs: int, groups: int, dtype: torch.dtype = torch.bfloat16
) -> PackedWeight:
    draw = torch.Generator().manual_seed(outputs)
    codes = torch.randint(0, 2**bits, (outputs, inputs), generator=draw)
    scale = (torch.rand(outputs, groups, generator=draw) + 0.5).to(dtype)
    zeros = torch.randint(0, 2**bits, (outputs * groups,), generator=draw)
    packed = pack_codes(codes, bits), scale, pack_codes(zeros, bits)
    return PackedWeight(*packed, bits, (outputs, inputs))


def rows_of(count: int, inputs: int) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(count)).bfloat16()


def errors(product, weight: PackedWeight, x: Tensor) -> Tensor:
    """Distance of every row's products to the exact ones, by the size of their terms."""
    wide, values = x.double(), weight.dequantized(torch.float32).double()
    terms = (wide.square() @ values.square().T).sqrt()
    return ((product(weight, x) - wide @ values.T) / terms).square().mean(dim=1).sqrt()


SHAPES = [
    *((16, 512, 1), (9, 640, 1), (6, 576, 1), (5, 64, 1)),  # sums of 256, 128, 192 and 64
    *((7, 512, 4), (3, 1024, 2), (2, 192, 3), (4, 960, 2)),  # 128, two of 256, 64; a group of 480
    *((13, 256, 8), (6, 128, 8), (10, 128, 16)),  # groups of 32, 16 and 8, which share a sum
    *((5, 384, 1), (6, 896, 1), (4, 1152, 3)),  # sums of 192, 128 and 128 in three groups
]


@pytest.mark.parametrize(("outputs", "inputs", "groups"), SHAPES)
@pytest.mark.parametrize("bits", [3, 4])
def test_rounding_is_finer_than_bfloat16(product, bits, outputs, inputs, groups):
    weight = weight_of(bits, outputs, inputs, groups)
    whole = (inputs // groups) % 64 == 0 or 64 % (inputs // groups) == 0
    for count in (1, 5):
        found = errors(product, weight, rows_of(count, inputs))
        assert float(found.max()) < (FINE if whole else EXACT)
        assert float(found.max()) > EXACT or not whole  # rounded it is


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_are_not_rounded(product, dtype):
    weight = weight_of(4, 8, 512, 4)
    assert float(errors(product, weight, rows_of(2, 512).to(dtype)).max()) < EXACT


def test_more_bits_are_not_rounded(product):
    assert float(errors(product, weight_of(5, 8, 512, 4), rows_of(2, 512)).max()) < EXACT


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_row_with_a_massive_number_stays_in_full_precision(product, groups):
    """And changes nothing for the rows beside it."""
    weight, x = weight_of(4, 11, 512, groups), rows_of(6, 512)
    x[2, 300] = 3000.0
    x[3, 0] = -3000.0
    found = errors(product, weight, x)
    assert float(found[2:4].max()) < EXACT
    assert all(EXACT < float(found[n]) < FINE for n in (0, 1, 4, 5))
    together = product(weight, x)
    for n in range(6):
        assert torch.equal(product(weight, x[n : n + 1])[0], together[n])


def test_where_massive_begins(product):
    """64 squared means of square roots: of ones and one of 70 that is 80, with 90 it is 82."""
    weight = weight_of(4, 8, 128, 2)
    x = torch.ones(2, 128).bfloat16()
    x[:, 1::2] = -1
    x[:, 3] = 0.3  # not a whole number of steps
    x[0, 70], x[1, 70] = 70, 90
    found = errors(product, weight, x)
    assert float(found[0]) > 5 * float(found[1])
    assert float(found[1]) < EXACT


@pytest.mark.parametrize("size", [1000.0, 30000.0])
@pytest.mark.parametrize(("groups", "places"), [(8, (5, 9)), (8, (0, 17, 63)), (4, (1, 70, 99))])
def test_massive_numbers_do_not_hide_each_other(product, groups, places, size):
    """Outputs that give them no weight, at their zero point, keep what the others say."""
    outputs, inputs = 8, 512
    weight = weight_of(4, outputs, inputs, groups)
    codes = weight.levels().clone()
    zeros = weight.zeros().repeat_interleave(inputs // groups, dim=1)
    x = rows_of(1, inputs)
    for place in places:
        codes[:, place], x[0, place] = zeros[:, place], size
    weight = replace(weight, codes=pack_codes(codes, 4))
    without = x.clone()
    without[0, list(places)] = 0
    expected = without.double() @ weight.dequantized(torch.float32).double().T
    found = product(weight, x)
    # sums of float32 that hold numbers of this size
    assert float((found - expected).norm() / expected.norm()) < 1e-7 * size


def test_weights_in_one_call_keep_their_outputs(product):
    """Of other numbers of outputs, one of them symmetric, with one massive row."""
    built_in = built.extension()
    x = rows_of(3, 256)
    x[1, 8] = 2000.0
    for dtype in (torch.float32, torch.float16):
        weights = [weight_of(4, outputs, 256, 2, dtype) for outputs in (7, 24, 9)]
        weights[1] = replace(weights[1], zero_point=None)
        together = built_in.products(weights, x)
        for weight, y in zip(weights, together, strict=True):
            assert torch.equal(y.double(), product(weight, x))
            assert float(errors(product, weight, x).max()) < FINE


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_stay_in_their_row(product, bad):
    weight, x = weight_of(4, 6, 256, 2), rows_of(3, 256)
    expected = product(weight, x)
    x[1, 17] = bad
    y = product(weight, x)
    assert not bool(y[1].isfinite().any())
    assert torch.equal(y[[0, 2]], expected[[0, 2]])


def test_nothing_gives_nothing_and_tiny_numbers_are_kept(product):
    weight, x = weight_of(4, 6, 256, 2), rows_of(2, 256)
    x[0] = 0
    x[1] *= 1e-31
    y = product(weight, x)
    assert not bool(y[0].any())
    assert float(errors(product, weight, x[1:]).max()) < FINE


def test_threads_change_nothing(product):
    weight, x = weight_of(3, 37, 512, 4), rows_of(3, 512)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = product(weight, x)
        torch.set_num_threads(3)
        assert torch.equal(product(weight, x), alone)
    finally:
        torch.set_num_threads(before)

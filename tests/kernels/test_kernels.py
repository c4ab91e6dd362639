"""Every kernel against the float64 reference, the reference against plain loops."""

import pytest
import torch
from torch import Tensor

from qvlm_lightning.kernels import extension as built
from qvlm_lightning.kernels import self_test, table, torch_kernels
from qvlm_lightning.kernels.table import TABLE, Case, holding_of
from qvlm_lightning.nn.packed_input import InputCodes
from qvlm_lightning.nn.packed_linear import Given, Holding, Kernel, PackedLinear
from qvlm_lightning.nn.packing import PackedWeight, pack_codes

BITS, ACTIVATIONS = (2, 3, 4, 5, 6, 7, 8), (16, 8, 4)


def weight_of(
    bits: int,
    features: tuple[int, int],
    groups: int,
    symmetric: bool = False,
    dtype: torch.dtype = torch.float32,
) -> PackedWeight:
    draw = torch.Generator().manual_seed(bits)
    outputs, _ = features
    codes = torch.randint(0, 2**bits, features, generator=draw)
    scale = (torch.rand(outputs, groups, generator=draw) + 0.5).to(dtype)
    zeros = pack_codes(torch.randint(0, 2**bits, (outputs * groups,), generator=draw), bits)
    return PackedWeight(
        pack_codes(codes, bits), scale, None if symmetric else zeros, bits, features
    )


def input_of(rows: int, inputs: int, bits: int, dtype: torch.dtype = torch.float32) -> Given:
    draw = torch.Generator().manual_seed(rows)
    if bits == 16:
        return torch.randn(rows, inputs, generator=draw).to(dtype)
    codes = torch.randint(0, 2**bits, (rows, inputs), generator=draw).to(torch.uint8)
    return InputCodes(codes, torch.rand(rows, 1, generator=draw), 2 ** (bits - 1) - 1, dtype)


def layer_of(weight: PackedWeight, held: self_test.Held, kernel: Kernel) -> PackedLinear:
    return PackedLinear(weight, Holding("test", held(weight), [kernel]))


def exactly(weight: PackedWeight, given: Given) -> Tensor:
    kernel = Kernel("reference", None, torch_kernels.reference)
    return torch_kernels.reference(layer_of(weight, self_test.dense, kernel), given)


@pytest.mark.parametrize("activation_bits", ACTIVATIONS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_reference_is_that_of_plain_loops(activation_bits, symmetric):
    weight = weight_of(3, (4, 6), 2, symmetric)
    given = input_of(2, 6, activation_bits)
    levels, zeros = weight.levels().tolist(), weight.zeros().tolist()
    scales, y = weight.scale.tolist(), exactly(weight, given)
    for n in range(2):
        for o in range(4):
            total = 0.0
            for i in range(6):
                if isinstance(given, InputCodes):
                    x = float(given.scale[n]) * (int(given.codes[n, i]) - given.zero_point)
                else:
                    x = float(given[n, i])
                total += x * scales[o][i // 3] * (levels[o][i] - zeros[o][i // 3])
            assert float(y[n, o]) == pytest.approx(total, rel=1e-6, abs=1e-9)


VNNI = Case(8, 8, (64, 256), 256, torch.float32, "cpu")


def entries() -> list[tuple[str, self_test.Held, table.Entry]]:
    """Every kernel of the table with its layout, once."""
    found = {
        (layout.name, entry.kernel.name): (layout.name, layout.held, entry)
        for layout in TABLE
        for entry in layout.entries
        if entry.kernel.name != "triton"  # test_triton.py
    }
    return list(found.values())


@pytest.mark.parametrize(
    ("layout", "held", "entry"), entries(), ids=lambda x: getattr(x, "kernel", x)
)
def test_every_kernel_is_the_reference(layout, held, entry, monkeypatch):
    """Of all widths, groups and types that it takes; oneDNN saturates on some processors, and the
    self-test is asked whether it does on this one.
    """
    if entry.kernel.name == "vnni" and not table._with_vnni(VNNI):
        pytest.skip("no compiler here, or no AVX-512 VNNI")
    if entry.kernel.name == "onednn-held":  # for those who have no compiler
        never = table.Entry(table._VNNI.kernel, lambda case: False)
        monkeypatch.setattr(table, "_VNNI", never)
    seen = 0
    for dtype in (torch.float32, torch.bfloat16):
        for bits in (3, 4, 6, 8):
            for activation_bits in ACTIVATIONS:
                for groups, symmetric in ((1, False), (1, True), (4, False)):
                    weight = weight_of(bits, (64, 256), groups, symmetric, dtype)
                    case = Case.of(weight, activation_bits)
                    if not entry.takes(case):
                        continue
                    scheme = (bits, activation_bits, case.grouped, dtype)
                    wrong = self_test.refusal(held, entry.kernel, *scheme) if bits == 8 else None
                    if wrong and "is wrong here" in wrong:
                        assert "onednn" in entry.kernel.name
                        continue
                    given = input_of(5, 256, activation_bits, dtype)  # four and one
                    y = entry.kernel.run(layer_of(weight, held, entry.kernel), given).double()
                    exact = exactly(weight, given)
                    error = float((y - exact).abs().max() / exact.abs().max())
                    assert error < (1e-5 if dtype == torch.float32 else 1e-2), (scheme, symmetric)
                    seen += 1
    assert seen or (layout == "dense" and built.extension() is None)


def test_the_default_type_does_not_matter():
    """C++ writes float32, whatever torch would make an empty tensor of."""
    if built.extension() is None:
        pytest.skip(f"no extension here: {built.why_no_extension()}")
    weight = weight_of(4, (6, 64), 2)
    layer = layer_of(weight, self_test.dense, Kernel("extension", None, torch_kernels.few_rows))
    given = [input_of(1, 64, 16), input_of(1, 64, 8)]
    expected = [torch_kernels.few_rows(layer, x) for x in given]
    torch.set_default_dtype(torch.float64)
    try:
        found = [torch_kernels.few_rows(layer, x) for x in given]
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [8, 16, 24, 32, 40])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_narrow_groups_keep_their_own_scales(bits, size):
    """Groups that share a register in the extension, and such as do not fit in one."""
    if built.extension() is None:
        pytest.skip(f"no extension here: {built.why_no_extension()}")
    weight = weight_of(bits, (6, 960), 960 // size)
    kernel = Kernel("extension", None, torch_kernels.few_rows)
    layer = layer_of(weight, self_test.dense, kernel)
    for given in (input_of(5, 960, 16), input_of(5, 960, 8)):  # four rows and one
        y, exact = kernel.run(layer, given).double(), exactly(weight, given)
        assert float((y - exact).abs().max() / exact.abs().max()) < 1e-5


@pytest.mark.parametrize(
    "features", [(3, 8), (1, 1), (7, 13), (65, 24), (2, 40), (5, 64), (9, 203), (4, 136)]
)
@pytest.mark.parametrize("bits", BITS)
def test_odd_shapes_are_right_to_the_last_byte(bits, features):
    """The extension reads up to 32 bytes at once; behind the last row there is nothing to read."""
    if built.extension() is None:
        pytest.skip(f"no extension here: {built.why_no_extension()}")
    weight = weight_of(bits, features, 1)
    given = input_of(5, features[1], 16)
    kernel = Kernel("extension", None, torch_kernels.few_rows)
    layer = layer_of(weight, self_test.dense, kernel)
    assert torch.allclose(kernel.run(layer, given).double(), exactly(weight, given), atol=1e-3)
    codes = input_of(5, features[1], 8)
    y, exact = kernel.run(layer, codes).double(), exactly(weight, codes)
    assert float((y - exact).abs().max()) <= 1e-6 * float(exact.abs().max())
    assert torch.equal(torch_kernels.dequantized(layer, torch.float32), weight.dequantized())
    signed = weight.levels().int() - 2 ** (bits - 1)
    assert torch.equal(torch_kernels.signed_codes(weight).int(), signed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_of_every_type_are_read(dtype):
    weight = weight_of(4, (6, 32), 2, dtype=dtype)
    layer = layer_of(weight, self_test.dense, Kernel("x", None, torch_kernels.dequantize))
    expected = weight.dequantized(torch.float32)
    assert torch.equal(torch_kernels.dequantized(layer, torch.float32), expected)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "groups"), [(3, 1), (3, 3), (4, 3), (7, 1), (8, 3)])
def test_a_weight_written_in_parts_gives_the_same(bits, groups, symmetric, monkeypatch):
    """Eight outputs at a time, the last part smaller, with scales and zero points of their own."""
    weight = weight_of(bits, (21, 24), groups, symmetric)
    written = []
    whole = torch_kernels.dequantized_part
    monkeypatch.setattr(torch_kernels, "WRITTEN_AT_ONCE", 8 * 24 + 23)
    monkeypatch.setattr(
        torch_kernels, "dequantized_part", lambda w, kind: written.append(w) or whole(w, kind)
    )
    layer = layer_of(weight, self_test.dense, Kernel("x", None, torch_kernels.dequantize))
    for given in (input_of(5, 24, 16), input_of(5, 24, 8)):
        y, exact = torch_kernels.dequantize(layer, given).double(), exactly(weight, given)
        assert float((y - exact).abs().max() / exact.abs().max()) < 1e-5
    assert [part.features for part in written] == 2 * [(8, 24), (8, 24), (5, 24)]
    assert torch.equal(torch.cat([part.zeros() for part in written[:3]]), weight.zeros())


def few_rows_of(weight: PackedWeight, given: Tensor) -> Tensor:
    kernel = Kernel("extension", None, torch_kernels.few_rows)
    return torch_kernels.few_rows(layer_of(weight, self_test.dense, kernel), given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "groups"), [(2, 4), (3, 1), (3, 4), (4, 1), (4, 4)])
def test_inputs_in_half_precision_lose_nothing_that_they_have(dtype, bits, groups):
    """A product in their own type would lose more, by the largest products that are added up."""
    if built.extension() is None:
        pytest.skip(f"no extension here: {built.why_no_extension()}")
    weight = weight_of(bits, (24, 512), groups, dtype=dtype)
    given = input_of(5, 512, 16, dtype)
    given[0, 7] = 3000  # a massive activation
    given[1] = 0
    given[2] *= 1e-6
    y, exact = few_rows_of(weight, given).double(), exactly(weight, given)
    size = given.double().abs() @ weight.dequantized(torch.float64).abs().T
    assert bool(((y - exact).abs() <= 2e-4 * size).all())
    assert bool((y[1] == 0).all())


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(odd):
    if built.extension() is None:
        pytest.skip(f"no extension here: {built.why_no_extension()}")
    given = input_of(2, 128, 16, torch.bfloat16)
    given[1, 3] = odd
    y = few_rows_of(weight_of(4, (8, 128), 1, dtype=torch.bfloat16), given)
    assert bool(y[0].isfinite().all())
    assert not bool(y[1].isfinite().any())


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel("int_mm", None, torch_kernels.integer_product),
        Kernel("extension", None, torch_kernels.few_rows),
    ],
    ids=lambda kernel: kernel.name,
)
def test_integer_sums_are_exact(kernel):
    """Of the largest codes there are, where float32 sums would round. The extension adds its eight
    exact sums as scaled float32 numbers.
    """
    if kernel.name == "extension" and built.extension() is None:
        pytest.skip(f"no extension here: {built.why_no_extension()}")
    weight = weight_of(8, (8, 1024), 1)
    codes = torch.full((2, 1024), 255, dtype=torch.uint8)
    given = InputCodes(codes, torch.ones(()), 0, torch.float32)
    y = kernel.run(layer_of(weight, self_test.dense, kernel), given)
    steps = weight.levels().int() - weight.zeros().int()
    sums = 255 * steps.sum(dim=1)
    expected = sums.to(torch.float32) * weight.scale[:, 0]
    allowed = 0 if kernel.name == "int_mm" else 2e-7
    assert float((y[0] - expected).abs().max()) <= allowed * float(expected.abs().max())


# --- the self-test -------------------------------------------------------------------------------


def test_a_kernel_that_is_wrong_is_refused():
    kernel = Kernel("twice", None, lambda layer, x: 2 * torch_kernels.dequantize(layer, x))
    said = self_test.refusal(self_test.dense, kernel, 4, 16, False, torch.float32)
    assert said is not None
    assert "twice is wrong here" in said


def test_a_kernel_that_gives_nan_is_refused():
    kernel = Kernel(
        "none", None, lambda layer, x: torch.full((len(x), layer.out_features), torch.nan)
    )
    assert "is wrong" in str(
        self_test.refusal(self_test.dense, kernel, 4, 16, False, torch.float32)
    )


def test_a_kernel_that_is_slow_is_refused():
    def slow(layer: PackedLinear, x: Given) -> Tensor:
        for _ in range(60):
            y = torch_kernels.dequantize(layer, x)
        return y

    said = self_test.refusal(
        self_test.dense, Kernel("slow", None, slow), 4, 16, False, torch.float32
    )
    assert "times slower here than a float32 product" in str(said)


def test_a_kernel_that_does_not_run_is_refused():
    def missing(layer: PackedLinear, x: Given) -> Tensor:
        raise RuntimeError("no such operator")

    said = self_test.refusal(
        self_test.dense, Kernel("missing", None, missing), 4, 16, False, torch.float32
    )
    assert said == "missing does not run here: no such operator"


# --- the table -----------------------------------------------------------------------------------


def test_without_the_extension_torch_alone_is_enough(monkeypatch):
    monkeypatch.setattr(table, "extension", lambda: None)
    monkeypatch.setattr(torch_kernels, "extension", lambda: None)
    monkeypatch.setattr(table, "refusal", lambda *_: None)
    for bits in (3, 4, 6):
        for activation_bits in ACTIVATIONS:
            for dtype in (torch.float32, torch.bfloat16):
                weight = weight_of(bits, (64, 256), 2, dtype=dtype)
                holding, _ = holding_of(weight, activation_bits)
                names = [kernel.name for kernel in holding.kernels]
                assert "extension" not in names
                assert holding.kernels[-1].most_rows is None
                layer = PackedLinear(weight, holding)
                given = input_of(3, 256, activation_bits, dtype)
                exact = exactly(weight, given)
                y = layer.kernel(3).run(layer, given).double()
                assert float((y - exact).abs().max() / exact.abs().max()) < 1e-2


def test_groups_that_begin_within_a_byte_are_left_to_torch():
    weight = weight_of(3, (4, 12), 3)
    holding, _ = holding_of(weight, 16)
    assert [kernel.name for kernel in holding.kernels] == ["dequantize"]
    given = input_of(1, 12, 16)
    y = holding.kernels[0].run(PackedLinear(weight, holding), given).double()
    torch.testing.assert_close(y, exactly(weight, given), rtol=1e-5, atol=1e-5)


def test_what_is_refused_is_said_and_not_used(monkeypatch):
    monkeypatch.setattr(table, "refusal", lambda *_: "it is wrong here")
    holding, refused = holding_of(weight_of(8, (64, 256), 1), 8)
    assert [kernel.name for kernel in holding.kernels] == ["dequantize"]
    assert set(refused) == {"it is wrong here"}


def test_kernels_change_with_the_number_of_rows():
    kernels = [
        Kernel("few", 4, torch_kernels.reference),
        Kernel("any", None, torch_kernels.reference),
    ]
    weight = weight_of(4, (4, 8), 1)
    layer = PackedLinear(weight, Holding("dense", self_test.dense(weight), kernels))
    assert [layer.kernel(rows).name for rows in (1, 4, 5, 600)] == ["few", "few", "any", "any"]

"""Products of bytes by AVX-512 VNNI, against exact ones."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qvlm_lightning.kernels import extension as built
from qvlm_lightning.kernels import table
from qvlm_lightning.kernels.table import Case
from qvlm_lightning.nn.packed_input import InputCodes
from qvlm_lightning.nn.packing import PackedWeight, pack_codes

EXACT = 1e-6  # of the size of terms: a sum of one scale is rounded once, of groups once per group


def extension_with(instructions: str):
    """Return the extension where its ``instructions`` are those of this processor."""
    found = built.extension()
    if found is None:
        pytest.skip(f"no extension here: {built.why_no_extension()}")
    if not getattr(found, instructions):
        pytest.skip("this processor has no AVX-512 VNNI, or no VBMI")
    return found


@pytest.fixture(scope="module")
def extension():
    return extension_with("has_byte_products")


def weight_of(bits: int, outputs: int, inputs: int, groups: int, shifted: bool) -> PackedWeight:
    draw = torch.Generator().manual_seed(outputs + bits)
    codes = torch.randint(0, 2**bits, (outputs, inputs), generator=draw)
    codes[0], codes[-1] = 0, 2**bits - 1
    scale = torch.rand(outputs, groups, generator=draw) + 0.5
    zeros = torch.randint(0, 2**bits, (outputs * groups,), generator=draw)
    zero_point = pack_codes(zeros, bits) if shifted else None
    return PackedWeight(pack_codes(codes, bits), scale, zero_point, bits, (outputs, inputs))


def rows_of(rows: int, inputs: int, zero_point: int, each: bool) -> InputCodes:
    draw = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 256, (rows, inputs), generator=draw).to(torch.uint8)
    codes[0] = 255
    scale = torch.rand(rows, 1, generator=draw) + 0.5 if each else torch.tensor(0.25)
    return InputCodes(codes, scale, zero_point, torch.float32)


def loops(weight: PackedWeight, given: InputCodes) -> tuple[Tensor, Tensor]:
    """Return the products in float64 and the sizes of their terms."""
    steps = given.codes.double() - given.zero_point
    scale = given.scale.double()
    values = weight.dequantized(torch.float64)
    return steps @ values.T * scale, steps.abs() @ values.abs().T * scale


SHAPES = [
    *((5, 64, 1), (6, 100, 1), (3, 1000, 1), (9, 640, 1), (4, 4304, 1)),  # whole steps and not
    *((8, 512, 4), (7, 512, 8), (5, 192, 3), (6, 2176, 17)),  # groups of 128 and 64; more than 16
    *((4, 256, 8), (5, 256, 16), (6, 128, 16)),  # groups of 32, 16 and 8 share a step
]


@pytest.mark.parametrize(("outputs", "inputs", "groups"), SHAPES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_bytes_are_multiplied_exactly(extension, bits, outputs, inputs, groups):
    for rows, zero_point, each, shifted in (
        (1, 128, False, False),
        (3, 0, True, True),
        (17, 100, True, False),
        (70, 255, False, True),  # a row of codes that all stand for 0
    ):
        weight = weight_of(bits, outputs, inputs, groups, shifted)
        given = rows_of(rows, inputs, zero_point, each)
        exact, terms = loops(weight, given)
        found = extension.byte_product(weight, given).double()
        assert ((found - exact).abs() <= EXACT * terms).all()


def test_more_rows_than_the_caches_hold(extension):
    weight, given = weight_of(4, 7, 4096, 1, True), rows_of(301, 4096, 90, True)
    exact, terms = loops(weight, given)
    assert ((extension.byte_product(weight, given).double() - exact).abs() <= EXACT * terms).all()


def test_threads_do_not_change_a_product(extension):
    weight, given = weight_of(4, 37, 512, 4, True), rows_of(150, 512, 128, True)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(extension.byte_product(weight, given))
    finally:
        torch.set_num_threads(before)
    assert found[0].equal(found[1])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [4, 16])
def test_zero_points_at_the_end_of_the_codes_cost_no_digits(extension, bits, groups):
    """Codes 0 and 1 around the zero point 0, and 2^b - 1 and one less around the other end."""
    weight = weight_of(bits, 6, 512, groups, True)
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2, (6, 512), generator=draw)
    zeros = torch.zeros(6, groups, dtype=torch.long)
    codes[3:], zeros[3:] = 2**bits - 1 - codes[3:], 2**bits - 1
    packed = pack_codes(codes, bits), pack_codes(zeros.reshape(-1), bits)
    weight = replace(weight, codes=packed[0], zero_point=packed[1])
    given = rows_of(6, 512, 128, True)
    exact, terms = loops(weight, given)
    found = extension.byte_product(weight, given).double()
    assert ((found - exact).abs() <= EXACT * terms).all()


def test_the_largest_sum_fits(extension):
    inputs = table.MOST_SUMMED
    codes = torch.full((1, inputs), 255)
    weight = PackedWeight(
        pack_codes(codes, 8), torch.ones(1, 1), pack_codes(torch.zeros(1).int(), 8), 8, (1, inputs)
    )
    given = InputCodes(codes.to(torch.uint8), torch.tensor(1.0), 0, torch.float32)
    assert extension.byte_product(weight, given).double().item() == pytest.approx(
        255.0 * 255 * inputs, rel=1e-7
    )


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"weight_bits": 3, "activation_bits": 4}, True),
        ({"features": (8, 1000), "group_size": 1000}, True),
        ({"group_size": 32}, True),
        ({"group_size": 96, "features": (8, 960)}, False),  # a group begins within a step
        ({"group_size": 32, "features": (8, 96)}, False),
        ({"activation_bits": 16}, False),
        ({"device": "cuda"}, False),
        ({"features": (8, 40_000), "group_size": 40_000}, False),
        *(({"group_size": size}, False) for size in (1, 2, 4)),  # no whole lanes
    ],
)
def test_what_bytes_are_for(monkeypatch, changes, taken):
    class WithVnni:
        has_byte_products = True

    monkeypatch.setattr(table, "extension", WithVnni)
    monkeypatch.setattr(table, "refusal", lambda *case: None)
    given = {
        "weight_bits": 8,
        "activation_bits": 8,
        "features": (8, 1024),
        "group_size": 1024,
        "dtype": torch.float32,
        "device": "cpu",
    }
    case = Case(**given | changes)
    assert table._with_vnni(case) is taken
    if taken and not case.grouped:
        assert not table._bytes_of_channels(case), "one copy of the weight is enough"
        monkeypatch.setattr(table, "refusal", lambda *case: "vnni is wrong here")
        assert table._bytes_of_channels(case) or case.weight_bits < 8
    WithVnni.has_byte_products = False
    assert not table._with_vnni(case)

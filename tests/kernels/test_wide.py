"""Products of few rows of codes by AVX-512 VNNI and VBMI, against exact ones and those of AVX2."""

import pytest
import torch

from qvlm_lightning.nn.packed_input import InputCodes
from tests.kernels.test_bytes import EXACT, extension_with, loops, rows_of, weight_of


@pytest.fixture(scope="module")
def extension():
    return extension_with("has_wide")


SHAPES = [
    (5, 64, 1),
    (4, 640, 1),
    (9, 2048, 1),
    (7, 512, 8),
    (8, 512, 4),
    (3, 1152, 3),
    (2, 192, 3),
]


@pytest.mark.parametrize(("outputs", "inputs", "groups"), SHAPES)
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_are_multiplied_exactly(extension, bits, outputs, inputs, groups):
    for rows, zero_point, each, shifted in (
        (1, 128, False, False),  # one plane of bytes
        (3, 0, True, True),  # two, because codes reach 255
        (6, 100, True, False),
        (2, 255, False, True),
    ):
        weight = weight_of(bits, outputs, inputs, groups, shifted)
        given = rows_of(rows, inputs, zero_point, each)
        exact, terms = loops(weight, given)
        (found,) = extension.products([weight], given)
        assert ((found.double() - exact).abs() <= EXACT * terms).all()


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_both_processors_give_the_same(extension, bits):
    """To the rounding of sums: what is rounded to whole numbers is so in either."""
    weight = weight_of(bits, 10, 1024, 4, True)
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randn(3, 1024, generator=draw).bfloat16(), rows_of(3, 1024, 128, True)]
    for x in rows:
        (wide,) = extension.products([weight], x)
        extension.use_wide(False)
        try:
            (narrow,) = extension.products([weight], x)
        finally:
            extension.use_wide(True)
        size = float(narrow.abs().max())
        assert float((wide - narrow).abs().max()) < 2e-6 * size
        assert isinstance(x, InputCodes) or bits == 6 or not torch.equal(wide, narrow)


def test_weights_in_one_call_and_threads_change_nothing(extension):
    weights = [weight_of(3, outputs, 256, 2, True) for outputs in (7, 24, 9)]
    given = rows_of(2, 256, 128, True)
    alone = [extension.products([weight], given)[0] for weight in weights]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = extension.products(weights, given)
    finally:
        torch.set_num_threads(before)
    for mine, other in zip(alone, together, strict=True):
        assert torch.equal(mine, other)

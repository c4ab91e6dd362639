"""Hadamard matrices and the factors of a width."""

import pytest
import torch

from qvlm_lightning.quant.hadamard import (
    _has_matrix,
    factors,
    hadamard,
    spreading,
    spreading_factors,
    spreading_rotation,
)

KNOWN = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 64, 76, 108, 128, 140, 148, 256]
UNKNOWN = [3, 6, 10, 18, 43, 92, 172, 269]


@pytest.mark.parametrize("order", KNOWN)
def test_entries_have_one_size_and_rows_are_orthogonal(order):
    matrix = hadamard(order)
    assert matrix is not None
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, order**-0.5))
    assert torch.allclose(matrix @ matrix.T, torch.eye(order).double(), atol=1e-12)


@pytest.mark.parametrize("order", UNKNOWN)
def test_other_orders_have_none(order):
    assert hadamard(order) is None


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (1, (1, 1)),
        (64, (8, 8)),
        (576, (24, 24)),
        (1536, (32, 48)),
        (4304, (269, 16)),
        (269, (269, 1)),
        (6, (3, 2)),
        (18944, (128, 148)),
    ],
)
def test_factors_by_hand(width, expected):
    assert factors(width) == expected


@pytest.mark.parametrize("width", [1, 6, 24, 64, 96, 269])
def test_factors_are_the_cheapest_of_all_pairs(width):
    pairs = [(a, width // a) for a in range(1, width + 1) if width % a == 0]
    both = [(a, b) for a, b in pairs if hadamard(a) is not None and hadamard(b) is not None]
    usable = both or [(a, b) for a, b in pairs if hadamard(b) is not None]
    assert sum(factors(width)) == min(a + b for a, b in usable)


def test_orders_are_known_without_their_matrices():
    for order in range(1, 300):
        assert _has_matrix(order) == (hadamard(order) is not None), order


@pytest.mark.parametrize("width", [8, 6, 36, 7])
def test_a_spreading_matrix_is_orthogonal_and_follows_the_seed(width):
    def draw(make, seed):
        return make(width, torch.Generator().manual_seed(seed))

    for make in (spreading, spreading_rotation):
        one, same, other = (draw(make, seed) for seed in (1, 1, 2))
        assert torch.allclose(one @ one.T, torch.eye(width).double(), atol=1e-12)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
    left, right = draw(spreading_factors, 1)
    assert len(left) * len(right) == width


def test_an_outlier_is_spread_over_all_channels():
    x = torch.zeros(96).double()
    x[17] = 96.0
    turned = x @ spreading_rotation(96, torch.Generator().manual_seed(0))
    assert torch.allclose(turned.abs(), torch.full_like(x, 96**0.5))

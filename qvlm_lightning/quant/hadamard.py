"""Orthogonal matrices that spread every channel over all others, as two small factors.

A Hadamard matrix has entries of one size only: what was an outlier in one channel becomes a small
amount in every channel (QuIP#, arXiv:2402.04396, section 3; QuaRot, arXiv:2404.00456, section 3).
A Kronecker product of two such matrices does the same and costs a + b instead of a * b
multiplications per channel.
"""

from functools import cache
from math import isqrt

import torch
from torch import Tensor


@cache
def hadamard(order: int) -> Tensor | None:
    """Return a Hadamard matrix divided by the root of its order, so that it is orthogonal.

    Built by doubling (Sylvester) from those of Paley over prime fields: 12, 20, 24, 28, 36, 44 ...

    Args:
        order: number of rows.

    Returns:
        [order, order] float64, which must not be changed; ``None`` if no construction is known
        here, as for every order above 2 that is no multiple of 4, and for 92, 116 and 172.

    Example:
        >>> hadamard(36).square().unique().numel(), hadamard(6)
        (1, None)
    """
    signs = _signs(order)
    return None if signs is None else signs / order**0.5


def _signs(order: int) -> Tensor | None:
    """Return a matrix of 1 and -1 whose rows are orthogonal."""
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if order != 2 and order % 4:
        return None
    if order % 4 == 0 and _is_prime(order - 1):  # Paley I: the prime is 3 modulo 4
        return torch.eye(order, dtype=torch.float64) + _bordered(order - 1, -1.0)
    if order % 8 == 4 and _is_prime(order // 2 - 1):  # Paley II: the prime is 1 modulo 4
        half = _bordered(order // 2 - 1, 1.0)
        same, turned = half.new_tensor([[1, 1], [1, -1]]), half.new_tensor([[1, -1], [-1, -1]])
        return torch.kron(half, same) + torch.kron(torch.eye(len(half)).double(), turned)
    smaller = _signs(order // 2)
    if smaller is None:
        return None
    return torch.kron(smaller.new_tensor([[1, 1], [1, -1]]), smaller)


def _bordered(prime: int, corner: float) -> Tensor:
    """Return the differences' quadratic characters with a row and a column of ones around them."""
    squares = {value * value % prime for value in range(1, prime)}
    character = torch.tensor([1.0 if v in squares else -1.0 for v in range(prime)]).double()
    character[0] = 0.0
    place = torch.arange(prime)
    bordered = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    bordered[0, 1:] = 1.0
    bordered[1:, 0] = corner
    bordered[1:, 1:] = character[(place[:, None] - place[None, :]) % prime]
    return bordered


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, isqrt(number) + 1))


def factors(width: int) -> tuple[int, int]:
    """Return two orders whose product is ``width``, for as little arithmetic as possible.

    Both have a Hadamard matrix if there are such; otherwise at least the second, which may be 1.

    Example:
        >>> factors(1536), factors(64), factors(4304), factors(269)
        ((32, 48), (8, 8), (269, 16), (269, 1))
    """
    pairs = [(a, width // a) for a in range(1, width + 1) if width % a == 0]
    known = [(a, b) for a, b in pairs if _has_matrix(b)]
    both = [(a, b) for a, b in known if _has_matrix(a)]
    return min(both or known, key=sum)


def _has_matrix(order: int) -> bool:
    """Return whether :func:`hadamard` knows an order; a matrix of 18,944 rows takes 3 GB."""
    while order > 2 and order % 4 == 0:
        if _is_prime(order - 1) or (order % 8 == 4 and _is_prime(order // 2 - 1)):
            return True
        order //= 2
    return order in (1, 2)


def spreading(order: int, generator: torch.Generator) -> Tensor:
    """Return an orthogonal matrix that spreads every channel: [order, order] float64.

    A Hadamard matrix with random signs of its rows where one is known, otherwise a random
    orthogonal matrix, uniformly distributed.

    Args:
        order: number of rows.
        generator: draws signs, or the matrix.
    """
    known = hadamard(order)
    if known is not None:
        signs = torch.randint(0, 2, (order,), generator=generator).double() * 2 - 1
        return signs[:, None] * known
    normal = torch.randn(order, order, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    return (q * r.diagonal().sign()).contiguous()  # without the signs Q is not uniform


def spreading_factors(width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two spreading matrices whose Kronecker product has ``width`` rows."""
    left, right = factors(width)
    return spreading(left, generator), spreading(right, generator)


def spreading_rotation(width: int, generator: torch.Generator) -> Tensor:
    """Return a spreading orthogonal matrix with random signs: [width, width] float64."""
    left, right = spreading_factors(width, generator)
    signs = torch.randint(0, 2, (width,), generator=generator).double() * 2 - 1
    return signs[:, None] * torch.kron(left, right)

"""Hadamard matrices, and rotations made of them.

Sylvester's construction doubles a matrix; Paley's two give the widths that are no powers of two: q + 1 for
primes q = 3 mod 4 (12, 20, 44, ...), 2 (q + 1) for primes q = 1 mod 4 (28, 36, 60, ...). So there are 2^k,
12 * 2^k, 20 * 2^k, 28 * 2^k, and most other multiples of 4; no other width but 1 and 2 can have one.
"""

from __future__ import annotations

from functools import cache
from itertools import count

import torch
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError


@cache
def has_hadamard(width: int) -> bool:
    """Whether `hadamard` knows a matrix of this width."""
    return width > 0 and _core(width) is not None


def hadamard(width: int) -> Tensor:
    """Return a Hadamard matrix H, float64 [n, n]: entries 1 and -1, H H' = n, its first row all ones.

    Raises:
        MethodError: none of this width is known; see `missing_width`.
    """
    core = _core(width)
    if core is None:
        raise MethodError(missing_width(width))
    matrix: Tensor = _paley(core)
    double = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.kron(double, matrix)
    return matrix * matrix[0]


def missing_width(width: int) -> str:
    """Return in words that there is no Hadamard matrix of a width, and the nearest that there are."""
    below = next((n for n in range(width - 1, 0, -1) if has_hadamard(n)), 1)
    above = next(n for n in count(width + 1) if has_hadamard(n))
    return (
        f"no Hadamard matrix of width {width} is known here (the nearest are of {below} and {above}; "
        "there are 2^k, 12, 20 and 28 times 2^k, and more multiples of 4)"
    )


def fixing_rotation(width: int, generator: torch.Generator) -> Tensor:
    """Return R = H' D H / n, float64 [n, n], D random signs of which the first is 1.

    Orthogonal and R 1 = 1, since H 1 = n e_0 and H' e_0 = 1. So the mean and the variance of a token stay,
    and LayerNorm without scale and shift commutes with R. Entries are spread like N(0, 1 / n).

    Raises:
        MethodError: there is no Hadamard matrix of this width.
    """
    matrix = hadamard(width)
    signs = _signs(width, generator)
    signs[0] = 1
    return matrix.T @ (signs[:, None] * matrix) / width


def fixing_random_rotation(width: int, generator: torch.Generator) -> Tensor:
    """Return R = 1 1' / n + B1 B2', float64 [n, n], of any width: orthogonal and R 1 = 1.

    B1 and B2 are random orthonormal bases of the complement of the all-ones vector.
    """
    first, second = (_complement(width, generator) for _ in range(2))
    ones = torch.full((width, width), 1 / width, dtype=torch.float64)
    return ones + first @ second.T


def head_rotations(heads: int, width: int, generator: torch.Generator) -> Tensor:
    """Return H D / sqrt(d) with signs of its own for each head, float64 [heads, d, d].

    Raises:
        MethodError: there is no Hadamard matrix of this width.
    """
    matrix = hadamard(width) / width**0.5
    return torch.stack([matrix * _signs(width, generator) for _ in range(heads)])


def random_head_rotations(heads: int, width: int, generator: torch.Generator) -> Tensor:
    """Return a random orthogonal matrix of its own for each head, of any width: float64 [heads, d, d]."""
    directions = torch.randn(heads, width, width, generator=generator, dtype=torch.float64)
    rotations: Tensor = torch.linalg.qr(directions).Q
    return rotations


def _signs(width: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (width,), generator=generator).double().mul_(2).sub_(1)


def _complement(width: int, generator: torch.Generator) -> Tensor:
    """A random orthonormal basis of the complement of the all-ones vector, [n, n - 1]."""
    directions = torch.randn(width, width, generator=generator, dtype=torch.float64)
    directions[:, 0] = 1
    basis: Tensor = torch.linalg.qr(directions).Q
    return basis[:, 1:]


def _core(width: int) -> int | None:
    """The smallest width that a construction gives and from which doubling leads to ``width``."""
    doublings = (width & -width).bit_length()
    candidates = [width >> k for k in reversed(range(doublings))]
    return next((n for n in candidates if _paley_prime(n) is not None), None)


def _paley_prime(width: int) -> int | None:
    """The prime of Paley's construction of a width; 1 for the matrix [1] itself."""
    if width == 1:
        return 1
    if width % 4 == 0 and _is_prime(width - 1):
        return width - 1
    half = width // 2 - 1
    return half if width % 4 == 0 and half % 4 == 1 and _is_prime(half) else None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _paley(width: int) -> Tensor:
    prime = _paley_prime(width)
    assert prime is not None
    if prime == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    squares = {i * i % prime for i in range(1, prime)}
    kinds = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, prime)]).double()
    place = torch.arange(prime)
    core: Tensor = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    core[1:, 1:] = kinds[(place[:, None] - place[None, :]) % prime]
    core[0, 1:] = 1
    one: Tensor = torch.eye(prime + 1, dtype=torch.float64)
    if prime % 4 == 3:
        core[1:, 0] = -1
        return one + core
    core[1:, 0] = 1
    sums = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    differences = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    doubled: Tensor = torch.kron(core, sums) + torch.kron(one, differences)
    return doubled

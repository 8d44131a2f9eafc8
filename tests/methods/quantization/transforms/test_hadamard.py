"""Hadamard matrices and the rotations made of them."""

import pytest
import torch
from torch import nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.transforms.hadamard import (
    fixing_random_rotation,
    fixing_rotation,
    hadamard,
    has_hadamard,
    head_rotations,
)

WIDTHS = [1, 2, 4, 12, 16, 20, 24, 28, 36, 44, 60, 192, 320, 448]

FAMILIES = [base * 2**k for base in (1, 12, 20, 28) for k in range(12) if base * 2**k < 3000]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_all_widths_of_the_field_are_known():
    assert all(map(has_hadamard, FAMILIES))
    assert not any(map(has_hadamard, [0, 3, 6, 10, 14, 18, 50, 92]))


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_orthogonal_and_the_first_is_ones(width):
    matrix = hadamard(width)
    assert matrix.dtype == torch.float64 and set(matrix.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(matrix @ matrix.T, width * torch.eye(width, dtype=torch.float64))
    assert bool((matrix[0] == 1).all())


@pytest.mark.parametrize(
    ("make", "width"),
    [(fixing_rotation, width) for width in WIDTHS[1:]]
    + [(fixing_random_rotation, width) for width in (2, 15, 48)],
)
def test_rotations_are_orthogonal_and_fix_the_ones(make, width):
    rotation = make(width, _generator(3))
    one, ones = torch.eye(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)
    torch.testing.assert_close(rotation @ rotation.T, one, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation @ ones, ones, rtol=0, atol=1e-12)
    assert torch.equal(rotation, make(width, _generator(3)))
    if width > 4:
        assert not torch.equal(rotation, make(width, _generator(4)))


def test_a_missing_width_is_refused_with_its_neighbours():
    with pytest.raises(MethodError, match="width 50 is known.* 48 and 56"):
        hadamard(50)
    with pytest.raises(MethodError, match="are of 88 and 96"):
        hadamard(92)


def test_heads_are_rotated_each_by_its_own_signs():
    rotations = head_rotations(3, 20, _generator())
    one = torch.eye(20, dtype=torch.float64).expand(3, 20, 20)
    torch.testing.assert_close(rotations @ rotations.transpose(1, 2), one, rtol=0, atol=1e-12)
    assert not torch.equal(rotations[0], rotations[1])


@pytest.mark.parametrize("width", [96, 192, 384])
def test_layernorm_commutes_with_the_rotation(width):
    x = torch.randn(50, width, generator=_generator(), dtype=torch.float64) * 3 + 1
    rotation, norm = fixing_rotation(width, _generator(1)), nn.LayerNorm(width).double()
    torch.testing.assert_close(norm(x @ rotation.T), norm(x) @ rotation.T, rtol=0, atol=1e-12)


def test_entries_are_spread_evenly():
    rotation = fixing_rotation(384, _generator())
    assert float(rotation.abs().max()) < 5 / 384**0.5

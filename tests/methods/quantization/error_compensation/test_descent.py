"""Codes and scales improved one by one, against brute force and numpy's least squares."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import (
    RowGrid,
    compensated_codes,
)
from vit_ptq_bench.methods.quantization.error_compensation.descent import descend, scale_factors
from vit_ptq_bench.methods.quantization.error_compensation.resolve import refined
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer


@dataclass(frozen=True)
class Table:
    """Levels at no even distance, times a scale per row."""

    scale: torch.Tensor
    steps: tuple[float, ...] = (-4.0, -1.5, -0.5, 0.0, 0.4, 1.0, 2.5, 6.0)

    def at(self, columns):
        return self

    def codes(self, weight):
        distances = (weight[..., None] - self.scale[:, None] * torch.tensor(self.steps)).abs()
        return distances.argmin(dim=-1).double()

    def values(self, codes):
        return torch.tensor(self.steps, dtype=torch.float64)[codes.long()] * self.scale


def _drawn(rows, columns, seed, tokens=None):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator)
    x = torch.randn(tokens or 4 * columns, columns, generator=generator) @ mixed + 0.3
    return torch.randn(rows, columns, generator=generator), (x.T @ x).double()


def _grid(weight, bits=3):
    quantizer = build_quantizer(TensorSpec(bits, "channel"), "w", axis=0)
    low, high = torch.aminmax(weight, dim=1)
    quantizer.set_range(0.8 * low, 0.8 * high)
    return quantizer, RowGrid.of(quantizer, weight)


def _error(weight, values, second):
    lack = (weight.double() - values.double()).numpy()
    return np.einsum("ri,ij,rj->r", lack, second.numpy(), lack)


def _levels(kind, weight):
    if kind == "uniform":
        return _grid(weight)[1], 8
    return Table(weight.double().abs().mean(dim=1, keepdim=True)), 8


@pytest.mark.parametrize("kind", ["uniform", "table"])
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 9), seed=st.integers(0, 999))
def test_the_error_never_rises_and_no_single_code_is_better(kind, rows, columns, seed):
    weight, second = _drawn(rows, columns, seed)
    levels, number = _levels(kind, weight)
    codes = levels.codes(weight.double())
    errors = [_error(weight, levels.values(codes), second)]
    for sweeps in (1, 2, 100):
        found = descend(weight, codes, levels, second, sweeps)
        errors.append(_error(weight, levels.values(found.double()), second))
    assert (np.diff(errors, axis=0) <= 1e-9 * errors[0]).all()
    for j in range(columns):
        for code in range(number):
            other = found.double()
            other[:, j] = code
            worse = _error(weight, levels.values(other), second)
            assert (worse >= errors[-1] - 1e-9 * errors[0]).all()


def test_it_goes_on_from_gptq_and_leaves_dead_columns():
    weight, second = _drawn(6, 40, 1, tokens=60)
    second[3] = second[:, 3] = 0
    _, grid = _grid(weight)
    codes = compensated_codes(weight, grid, second, 0.01, True)
    found = descend(weight, codes, grid, second, 20)
    assert found.dtype == torch.int32
    assert torch.equal(found[:, 3], codes[:, 3])
    before, after = (_error(weight, grid.values(c.double()), second).sum() for c in (codes, found))
    assert after < 0.98 * before


def test_scales_are_those_of_least_squares():
    weight, second = _drawn(4, 12, 3)
    _, grid = _grid(weight)
    values = grid.values(grid.codes(weight.double()))
    values[2] = 0
    factors = scale_factors(weight, values, second)
    assert factors.dtype == torch.float64 and factors[2] == 1
    root = np.linalg.cholesky(second.numpy()).T
    for row in (0, 1, 3):
        found, *_ = np.linalg.lstsq(
            (root @ values[row].numpy())[:, None], root @ weight[row].double().numpy(), rcond=None
        )
        assert float(factors[row]) == pytest.approx(found[0], rel=1e-8)


def test_a_round_refits_the_scales_and_then_the_codes():
    weight, second = _drawn(6, 40, 4)
    quantizer, grid = _grid(weight)
    codes = compensated_codes(weight, grid, second, 0.01, True)
    errors = [_error(weight, quantizer.dequantize(codes), second).sum()]
    for _ in range(4):
        codes = refined(quantizer, weight, codes, second)
        assert int(codes.min()) >= 0 and int(codes.max()) <= 7
        errors.append(_error(weight, quantizer.dequantize(codes), second).sum())
    assert (np.diff(errors) <= 1e-5 * errors[0]).all()
    assert errors[-1] < 0.95 * errors[0]

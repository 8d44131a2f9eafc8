"""GPTQ's rounding against a direct computation, and what it promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import (
    RowGrid,
    compensated_codes,
    second_moment,
)
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer


def _problem(seed: int, rows: int, columns: int, bits: int, tokens: int = 0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator)
    x = torch.randn(tokens or 4 * columns, columns, generator=generator) @ mix
    quantizer = UniformQuantizer(TensorSpec(bits, "channel"), "w", axis=0)
    quantizer.set_range(weight.amin(1), weight.amax(1))
    return weight, x, quantizer, RowGrid.of(quantizer, weight)


def _output_error(weight, codes, quantizer, x):
    return float((x @ (quantizer.dequantize(codes) - weight).T).square().sum())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 40), st.integers(2, 8))
def test_diagonal_hessian_is_plain_rounding(seed, rows, columns, bits):
    weight, _, quantizer, grid = _problem(seed, rows, columns, bits)
    diagonal = torch.rand(columns, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    for ordered in (True, False):
        codes = compensated_codes(weight, grid, diagonal.diag(), 0.01, ordered)
        assert torch.equal(codes, quantizer.quantize(weight))


@pytest.mark.parametrize("columns", [1, 12], ids=["scale per row", "scale per entry"])
def test_one_column_is_rounded_as_all_are(columns):
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(6, 12, generator=generator).double()
    scale = torch.rand(6, columns, generator=generator).double() + 0.1
    grid = RowGrid(scale, torch.randint(0, 8, (6, columns), generator=generator).double(), 0, 7)
    codes = grid.codes(weight)
    for place in range(12):
        code, value = grid.nearest(weight[:, place], place)
        assert torch.equal(code, codes[:, place])
        assert torch.equal(value, grid.values(codes)[:, place])


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("columns", [24, 200])
def test_output_error_is_below_that_of_plain_rounding(bits, columns):
    weight, x, quantizer, grid = _problem(bits, 16, columns, bits)
    codes = compensated_codes(weight, grid, second_moment(x), 0.01, True)
    plain = _output_error(weight, quantizer.quantize(weight), quantizer, x)
    assert _output_error(weight, codes, quantizer, x) < 0.7 * plain


def test_equals_one_optimal_update_per_column():
    """Optimal brain quantization in natural order: re-solve for the free columns after each one."""
    weight, x, _, grid = _problem(0, 5, 150, 3)
    hessian = second_moment(x)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(150, dtype=torch.float64)
    current, expected = weight.double().clone(), torch.zeros(5, 150)
    for column in range(150):
        expected[:, column] = grid.codes(current[:, column : column + 1])[:, 0]
        error = grid.values(expected[:, column : column + 1].double())[:, 0] - current[:, column]
        free = slice(column + 1, None)
        if column < 149:  # minimise the quadratic form over the free columns, this one held
            update = torch.linalg.solve(damped[free, free], damped[free, column])
            current[:, free] -= torch.outer(error, update)
    codes = compensated_codes(weight, grid, hessian, 0.01, False)
    assert torch.equal(codes, expected.int())


def test_dead_columns_and_too_few_tokens():
    weight, x, quantizer, grid = _problem(1, 4, 12, 4, tokens=3)
    x[:, 5] = 0
    codes = compensated_codes(weight, grid, second_moment(x), 0.01, True)
    assert torch.equal(codes[:, 5], quantizer.zero_point)
    with pytest.raises(MethodError, match="larger damping"):
        compensated_codes(weight, grid, second_moment(x), 0.0, True)


@torch.no_grad()
def test_model_is_nearer_than_one_that_is_only_rounded(tiny, calibration):
    """Through the registered method; a huge damping leaves nothing of the compensation."""
    images, errors = calibration.whole(), []
    for damping in (0.01, 1e6):
        method = METHODS.get("gptq").create({"damping": damping})
        model = method.quantize(tiny, method.bit_table(BitWidth(4, 32)), calibration)
        errors.append(float((model(images) - tiny(images)).norm()))
    assert errors[0] < 0.85 * errors[1]


@torch.no_grad()
def test_convolution_as_matrix(vit, images):
    from vit_ptq_bench.methods.quantization.bits import equal_table
    from vit_ptq_bench.methods.quantization.model.families import wrap_model

    layer = wrap_model(vit, equal_table(BitWidth(4, 4))).weighted_operations()[0]
    rows = layer.columns(images) @ layer.weight.flatten(1).T + layer.bias
    expected = layer(images).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)

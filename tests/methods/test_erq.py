"""ERQ: ridge regression, rounding refinement, dual uniform weights."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from vit_ptq_bench.methods.api.registry import METHODS
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitWidth, TensorSpec
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import RowGrid
from vit_ptq_bench.methods.quantization.error_compensation.ridge import (
    Moments,
    outlier_columns,
    reduce_activation_error,
    reduce_weight_error,
    refine,
)
from vit_ptq_bench.methods.quantization.model.families import wrap_model
from vit_ptq_bench.methods.quantization.quantizers.uniform import (
    DualUniformQuantizer,
    UniformQuantizer,
)

GENERATOR = torch.Generator().manual_seed(0)


def _random(*shape):
    return torch.randn(*shape, generator=GENERATOR)


def _layer(bias=True, tokens=200, inputs=12, outputs=7):
    """Inputs with dependent columns, the same quantized, and weight (with bias)."""
    x = _random(tokens, inputs) @ _random(inputs, inputs) + 0.3
    quantizer = UniformQuantizer(TensorSpec(3), "x")
    quantizer.set_range(x.amin().reshape(1), x.amax().reshape(1))
    weight = _random(outputs, inputs + bias).double()
    return x, quantizer.fake_quantize(x), weight


def _grid(weight, bits=3):
    quantizer = UniformQuantizer(TensorSpec(bits, "channel"), "w", axis=0)
    quantizer.set_range(weight.amin(1), weight.amax(1))
    return RowGrid.of(quantizer, weight)


def _augmented(x, bias):
    x = x.double()
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1) if bias else x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 1.0, 1e3])
def test_first_step_is_the_ridge_regression_of_the_residual(bias, ridge):
    x, quantized, weight = _layer(bias)
    found = reduce_activation_error(weight, Moments.of(x, quantized, bias), ridge)
    exact, seen = _augmented(x, bias), _augmented(quantized, bias)
    residual = (exact - seen) @ weight.T
    # Ridge regression as least squares on stacked equations.
    size = seen.shape[1]
    rows = torch.cat([seen, ridge**0.5 * torch.eye(size).double()]).numpy()
    wanted = torch.cat([residual, torch.zeros(size, len(weight)).double()]).numpy()
    solution = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    np.testing.assert_allclose((found - weight).numpy(), solution, rtol=1e-4, atol=1e-5)
    before = (seen @ weight.T - exact @ weight.T).square().sum()
    after = (seen @ found.T - exact @ weight.T).square().sum()
    assert after <= before


def test_an_infinite_ridge_changes_nothing():
    x, quantized, weight = _layer()
    found = reduce_activation_error(weight, Moments.of(x, quantized, True), 1e14)
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-9)


def test_a_singular_moment_without_ridge_is_refused():
    x = torch.zeros(5, 3)
    with pytest.raises(MethodError, match="larger ridge"):
        reduce_activation_error(_random(2, 3).double(), Moments.of(x, x, False), 0.0)


def _objective(values, weight, moment):
    error = values - weight
    return (error @ moment * error).sum(dim=1)


def test_refinement_never_raises_the_objective_and_reaches_a_local_minimum():
    x = _layer()[1].double()
    moment = x.T @ x / len(x)
    weight = _random(40, 12).double()
    grid = _grid(weight)
    nearest = _objective(grid.values(grid.codes(weight)), weight, moment)
    last = nearest
    for flips in (1, 2, 5, 100):
        now = _objective(grid.values(refine(weight, grid, moment, flips)), weight, moment)
        assert (now <= last + 1e-9).all()
        last = now
    assert last.sum() < 0.9 * nearest.sum()
    torch.testing.assert_close(refine(weight, grid, moment, 0), grid.codes(weight))


def test_the_first_flip_is_the_one_of_the_largest_gradient():
    x = _layer()[1].double()
    moment = x.T @ x / len(x)
    weight = _random(30, 12).double()
    grid = _grid(weight)
    before, after = grid.codes(weight), refine(weight, grid, moment, 1)
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        error = grid.values(before)[row] - weight[row]
        gradient = 2 * error @ moment
        fit = [i for i in range(12) if error[i] * gradient[i] > 0]
        column = max(fit, key=lambda i: abs(gradient[i]))
        flipped = old.clone()
        flipped[column] = (old[column] - error[column].sign()).clamp(0, 7)
        values = (torch.stack([old, flipped]) - grid.zero_point[row]) * grid.scale[row]
        objective = _objective(values, weight[row], moment)
        expected = flipped if objective[1] <= objective[0] else old
        assert torch.equal(new, expected)


def test_refinement_is_close_to_the_best_of_all_roundings():
    x = _layer(inputs=6)[1].double()
    moment = x.T @ x / len(x)
    weight = _random(20, 6).double()
    grid = _grid(weight)
    found = _objective(grid.values(refine(weight, grid, moment, 100)), weight, moment)
    floor = torch.floor(weight / grid.scale) + grid.zero_point
    options = torch.tensor(list(itertools.product((0, 1), repeat=6))).double()
    best = torch.stack(
        [_objective(grid.values((floor + up).clamp(0, 7)), weight, moment) for up in options]
    ).amin(0)
    nearest = _objective(grid.values(grid.codes(weight)), weight, moment)
    assert (found >= best - 1e-9).all()
    assert found.sum() - best.sum() < 0.6 * (nearest.sum() - best.sum())


def test_steep_refinement_is_the_released_rule():
    """One flip after the other by hand: a step against the gradient, then the nearer of both neighbours."""
    x = _layer()[1].double() / 8
    moment = x.T @ x / len(x)
    weight = _random(30, 12).double()
    grid = _grid(weight)
    found = grid.values(refine(weight, grid, moment, 100, steep=True)) - weight
    down = grid.values((torch.floor(weight / grid.scale) + grid.zero_point).clamp(0, 7)) - weight
    up = grid.values((torch.ceil(weight / grid.scale) + grid.zero_point).clamp(0, 7)) - weight
    for row in range(len(weight)):
        error = (grid.values(grid.codes(weight)) - weight)[row]
        for _ in range(100):
            gradient = 2 * moment @ error
            size = torch.where(error * gradient > 0, gradient.abs(), 0.0)
            column = int(size.argmax())
            wanted = error[column] - gradient[column]
            pair = torch.stack([up[row, column], down[row, column]])
            changed = error.clone()
            changed[column] = pair[(pair - wanted).abs().argmin()]
            if changed @ moment @ changed > error @ moment @ error or torch.equal(changed, error):
                break
            error = changed
        torch.testing.assert_close(found[row], error, rtol=0, atol=1e-9)
    assert not torch.equal(
        refine(weight, grid, moment, 100), refine(weight, grid, moment, 100, True)
    )


@torch.no_grad()
def test_the_released_form_calibrates_activations_behind_full_precision_weights(vit, calibration):
    scales = {}
    for bits in (2, 8):
        released = METHODS.get("erq-released").create({})
        model = released.quantize(vit, released.bit_table(BitWidth(bits, 8)), calibration)
        scales[bits] = [site.quantizer.scale for site in model.sites() if not site.is_weight]
    assert all(torch.equal(a, b) for a, b in zip(*scales.values(), strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_second_step_lowers_the_output_error_and_its_codes_are_on_the_grid(bias):
    x, quantized, weight = _layer(bias)
    columns = weight.shape[1] - bias
    moments = Moments.of(x, quantized, bias)
    grid = _grid(weight[:, :columns])
    codes, offset = reduce_weight_error(weight, columns, grid, moments, 1.0, 100)
    assert codes.min() >= 0 and codes.max() <= 7 and (offset is not None) == bias
    seen = _augmented(quantized, bias)

    def error(codes, offset):
        values = grid.values(codes.double())
        full = values if offset is None else torch.cat([values, offset[:, None]], dim=1)
        return (seen @ (full - weight).T).square().sum()

    nearest = grid.codes(weight[:, :columns])
    assert error(codes, offset) < 0.7 * error(nearest, weight[:, -1] if bias else None)


def test_a_fine_grid_leaves_the_weight_alone():
    x, quantized, weight = _layer()
    grid = RowGrid(torch.full((7, 1), 1e-9).double(), torch.zeros(7, 1).double(), -(2**40), 2**40)
    moments = Moments.of(x, quantized, True)
    _, bias = reduce_weight_error(weight, 12, grid, moments, 1.0, 100)
    torch.testing.assert_close(bias, weight[:, -1], rtol=0, atol=1e-6)


def test_outlier_columns_are_the_most_frequent():
    weight = 0.01 * _random(40, 30)
    weight[:, [3, 17]] = 5 * _random(40, 2)
    assert outlier_columns(weight).nonzero().flatten().tolist() == [3, 17]
    assert outlier_columns(weight[:10]).sum() == 0  # floor(10 / 20) columns


def _dual(weight, bits=3):
    outliers = outlier_columns(weight)
    parts = []
    for columns in (~outliers, outliers):
        part = UniformQuantizer(TensorSpec(bits, "channel"), "w", axis=0)
        part.set_range(weight[:, columns].amin(1), weight[:, columns].amax(1))
        parts.append(part)
    dual = DualUniformQuantizer(TensorSpec(bits, "channel", scheme="dual-uniform"), "w", axis=0)
    dual.set_dual(*parts, outliers)
    return dual, outliers, parts


def test_dual_uniform_is_two_quantizers_side_by_side():
    weight = 0.01 * _random(40, 30)
    weight[:, [3, 17]] = 5 * _random(40, 2)
    dual, outliers, (ordinary, outlying) = _dual(weight)
    values = dual.fake_quantize(weight)
    assert torch.equal(values[:, ~outliers], ordinary.fake_quantize(weight[:, ~outliers]))
    assert torch.equal(values[:, outliers], outlying.fake_quantize(weight[:, outliers]))
    torch.testing.assert_close(dual.fake_quantize(values), values)
    torch.testing.assert_close(dual.dequantize(dual.quantize(weight)), values)
    half = torch.where(outliers, outlying.scale[:, None], ordinary.scale[:, None]) / 2
    assert ((values - weight).abs() <= half * (1 + 1e-5)).all()
    plain = UniformQuantizer(TensorSpec(3, "channel"), "w", axis=0)
    plain.set_range(weight.amin(1), weight.amax(1))
    errors = [(v - weight)[:, ~outliers].norm() for v in (values, plain.fake_quantize(weight))]
    assert errors[0] < 0.5 * errors[1]
    grid = RowGrid.of(dual, weight)
    assert torch.equal(grid.codes(weight.double()).int(), dual.quantize(weight))


@torch.no_grad()
def test_both_steps_lower_the_error_of_the_output(tiny, images, calibration):
    def error(**settings):
        method = METHODS.get("erq").create(settings)
        table = method.bit_table(BitWidth(3, 4))
        quantized = method.quantize(tiny, table, calibration)
        return float((quantized(images) - tiny(images)).square().mean())

    nearest = error(activation_step=False, weight_step=False)
    assert error() < nearest and error(activation_step=False) < nearest


@torch.no_grad()
def test_layers_without_bias_stay_without_and_dual_sites_have_their_columns(images, calibration):
    from vit_ptq_bench.bench.contract.models import build_classifier

    swin = build_classifier("swin")
    reduction = swin.layers[1].downsample.reduction
    assert reduction.bias is None
    method = METHODS.get("erq").create({})
    table = method.bit_table(BitWidth(4, 4))
    quantized = method.quantize(swin, table, calibration)
    assert isinstance(reduction, nn.Linear)
    duals = [
        op.weight_quantizer
        for op in quantized.weighted_operations()
        if isinstance(op.weight_quantizer, DualUniformQuantizer)
    ]
    assert len(duals) == 6 and all(0 < q.outliers.sum() < len(q.outliers) for q in duals)
    plain = METHODS.get("erq").create({"dual": False})
    assert plain.bit_table(BitWidth(4, 4))["qkv.weight"].scheme == "uniform"
    assert wrap_model(swin, table)

"""Compensation for quantized inputs against least squares done by hand, and the two streams it reads."""

import numpy as np
import pytest
import torch

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import (
    RowGrid,
    compensated_codes,
    residual_moves,
    second_moment,
)
from vit_ptq_bench.methods.quantization.error_compensation.residual_aware import (
    InputMoments,
    require_folds,
    validated_strength,
)
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer


def _tokens(n: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated exact inputs, and what a coarse quantizer makes of them."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    exact = torch.randn(n, columns, generator=generator) @ mix
    return exact, (exact / 2).round() * 2


def test_moves_are_least_squares_on_the_columns_behind():
    exact, x = (t.double().numpy() for t in _tokens(200, 7, 0))
    second, lack = 2 * x.T @ x, 2 * (exact - x).T @ x
    inverse = torch.from_numpy(np.linalg.inv(second))
    factor = torch.linalg.cholesky(inverse, upper=True)
    moves = residual_moves(torch.from_numpy(lack), factor).numpy()
    for column in range(6):
        behind = slice(column + 1, None)
        wanted = np.linalg.lstsq(x[:, behind], (exact - x)[:, column], rcond=None)[0]
        np.testing.assert_allclose(moves[column, behind], wanted, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(moves[column, : column + 1], 0, atol=1e-10)


def _codes(weight, exact, x, strength, blocks=None):
    quantizer = UniformQuantizer(TensorSpec(8, "channel"), "w", axis=0)
    quantizer.set_range(weight.amin(dim=1) * 1.5, weight.amax(dim=1) * 1.5)
    lack = 2 * ((exact - x).T @ x).double()
    grid = RowGrid.of(quantizer, weight)
    codes = compensated_codes(weight, grid, second_moment(x), 1e-6, True, strength * lack)
    return quantizer.dequantize(codes)


def test_compensation_leaves_less_of_the_output_error_than_gptq():
    exact, x = _tokens(500, 150, 1)  # more columns than a block of the rounding has
    weight = torch.randn(20, 150, generator=torch.Generator().manual_seed(2))
    target = exact @ weight.T
    errors = [
        float((target - x @ _codes(weight, exact, x, s).T).square().sum()) for s in (0.0, 0.5, 1.0)
    ]
    assert errors[2] < errors[1] < errors[0]


def test_strength_zero_is_gptq():
    exact, x = _tokens(300, 40, 3)
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(4))
    quantizer = UniformQuantizer(TensorSpec(4, "channel"), "w", axis=0)
    quantizer.set_range(weight.amin(dim=1), weight.amax(dim=1))
    grid, second = RowGrid.of(quantizer, weight), second_moment(x)
    plain = compensated_codes(weight, grid, second, 0.01, True)
    with_none = compensated_codes(
        weight, grid, second, 0.01, True, 0.0 * ((exact - x).T @ x).double()
    )
    assert torch.equal(plain, with_none)


def _moments(exact, x, folds):
    parts = [(exact[f::folds].double(), x[f::folds].double()) for f in range(folds)]
    return InputMoments(
        torch.stack([2 * q.T @ q for _, q in parts]),
        torch.stack([2 * (e - q).T @ q for e, q in parts]),
    )


def test_strength_is_the_best_on_held_out_rows():
    exact, x = _tokens(120, 12, 5)
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(6)).double()
    folds, damping = 3, 0.1
    strength = validated_strength(weight, _moments(exact, x, folds), damping)

    def left_over(alpha: float) -> float:
        total = 0.0
        for fold in range(folds):
            rest = [i for i in range(len(x)) if i % folds != fold]
            own = [i for i in range(len(x)) if i % folds == fold]
            q, e = x[rest].double(), exact[rest].double()
            second = 2 * q.T @ q
            second += damping * second.diagonal().mean() * torch.eye(12)
            move = weight @ (2 * (e - q).T @ q) @ torch.linalg.inv(second)
            output = (exact[own].double() - x[own].double()) @ weight.T
            total += float((output - alpha * x[own].double() @ move.T).square().sum())
        return total

    best = min(np.linspace(0, 1, 2001), key=left_over)
    assert strength == pytest.approx(best, abs=1e-3)
    assert 0 < strength < 1


def test_noise_that_no_other_image_shares_is_not_compensated():
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(60, 50, generator=generator)
    exact = x + torch.randn(60, 50, generator=generator)
    weight = torch.randn(4, 50, generator=generator).double()
    assert validated_strength(weight, _moments(exact, x, 4), 0.01) < 0.1


def test_fewer_images_than_folds_are_refused():
    with pytest.raises(MethodError, match="3 calibration images cannot be cut into 4 folds"):
        require_folds(3, 4)

"""Ridge regression of quantization errors into weights (ERQ): closed form, from second moments only.

Everything a layer's tokens have to tell is in two matrices: the second moment ``G = sum xb xb^T`` of its
quantized input and the cross moment ``D = sum (x - xb) xb^T`` of the input's error with it; where the layer
has a bias, xb has a 1 at its end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.error_compensation.columnwise import RowGrid
from vit_ptq_bench.methods.quantization.error_compensation.solving import positive_factor
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's quantized input over n tokens.

    Attributes:
        second: G, float64 [K', K'], K' = K + 1 with a bias, else K.
        cross: D, float64 [K', K'].
        tokens: n.
    """

    second: Tensor
    cross: Tensor
    tokens: int

    @classmethod
    def of(cls, exact: Tensor, quantized: Tensor, bias: bool) -> "Moments":
        """Return the moments of inputs [n, K] before and after quantization."""
        error = exact - quantized
        if bias:
            ones = quantized.new_ones(len(quantized), 1)
            quantized, error = (
                torch.cat(pair, dim=1) for pair in ((quantized, ones), (error, 0 * ones))
            )
        return cls(
            (quantized.T @ quantized).double(), (error.T @ quantized).double(), len(quantized)
        )


def with_bias(layer: WeightedOperation) -> Tensor:
    """Return weight and bias of a layer as one float64 matrix [C_out, K']."""
    weight = layer.weight.detach().flatten(1).double()
    if layer.bias is None:
        return weight
    return torch.cat([weight, layer.bias.detach().double()[:, None]], dim=1)


def reduce_activation_error(weight: Tensor, moments: Moments, damping: float) -> Tensor:
    """Return the weight [R, K'] that best gives the exact output from the quantized input.

    ``W + W D (G + lambda I)^-1``, the ridge regression of the output's error ``W (x - xb)`` on xb (ERQ,
    activation quantization error reduction). ``damping``: lambda.
    """
    return weight + _solve(weight @ moments.cross, moments.second, damping)


def _solve(right: Tensor, matrix: Tensor, damping: float) -> Tensor:
    """Return ``right (matrix + damping I)^-1``.

    Raises:
        MethodError: the damped matrix is not positive definite.
    """
    damped = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.cholesky_solve(right.T, positive_factor(damped, "ridge")).T


def reduce_weight_error(
    weight: Tensor,
    columns: int,
    grid: RowGrid,
    moments: Moments,
    damping: float,
    flips: int,
    steep: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Quantize half of the open columns at a time and make up for the error with the rest.

    ERQ, weight quantization error reduction: the half is rounded to nearest, then refined (`refine`),
    and the columns left take ``-e G_sr (G_rr + lambda I)^-1``. The bias is the last to be open.

    Args:
        weight: [R, K'], float64.
        columns: K; what is beyond is the bias.
        grid: the rows' scales, fixed beforehand.
        moments: of the quantized input; with a bias K' = K + 1.
        damping: lambda.
        flips: most roundings changed per row and half; 0: no refinement.
        steep: as in `refine`.

    Returns:
        Codes (int32, [R, K]) and the bias ([R]) or None.
    """
    has_bias = columns < weight.shape[1]
    open_weight, start = weight.clone(), 0
    codes = weight.new_empty(len(weight), columns)
    while start < columns:
        left = weight.shape[1] - start
        end = start + max(1, left // 2)
        here, rest = slice(start, end), slice(end, None)
        part = grid.at(here)
        target = open_weight[:, here]
        chosen = refine(target, part, moments.second[here, here] / moments.tokens, flips, steep)
        codes[:, here] = chosen
        error = part.values(chosen) - target
        if end < weight.shape[1]:
            moved = error @ moments.second[here, rest]
            open_weight[:, rest] -= _solve(moved, moments.second[rest, rest], damping)
        start = end
    return codes.to(torch.int32), open_weight[:, -1] if has_bias else None


def refine(
    weight: Tensor, grid: RowGrid, moment: Tensor, flips: int, steep: bool = False
) -> Tensor:
    """Return codes [R, k] near ``weight`` whose error e has a small ``e M e^T`` in each row.

    From the nearest codes on: of the columns whose error has the sign of its gradient ``2 e M``, the one
    with the largest gradient goes to the neighbour on the other side, as long as that does not raise the
    row's objective.

    Args:
        weight: [R, k].
        grid: its rows' scales.
        moment: M, second moment of the columns' inputs, [k, k].
        flips: most changes per row.
        steep: a rounding changes only where its gradient is larger than half the distance of both
            neighbours, so that a step against it ends nearer to the other one; else its row is done.
    """
    codes = grid.codes(weight)
    error = grid.values(codes) - weight
    half_gradient = error @ moment
    rows = torch.arange(len(weight), device=weight.device)
    active = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    curvature = moment.diagonal()
    for _ in range(flips):
        candidates = error * half_gradient > 0
        strength = torch.where(candidates, half_gradient.abs(), -1.0)
        value, column = strength.max(dim=1)
        now, step = error[rows, column], -error[rows, column].sign()
        other = (codes[rows, column] + step).clamp(grid.low, grid.high)
        moved = (other - codes[rows, column]) * grid.step(rows, column)
        change = 2 * moved * half_gradient[rows, column] + moved.square() * curvature[column]
        active &= (value > 0) & (moved != 0) & (change <= 0)
        if steep:
            active &= 2 * value > moved.abs() / 2
        if not bool(active.any()):
            break
        moved = torch.where(active, moved, 0.0)
        codes[rows, column] = torch.where(active, other, codes[rows, column])
        error[rows, column] = now + moved
        half_gradient += moved[:, None] * moment[column]
    return codes


OUTLYING_SHARE, COLUMNS_PER_ROW = 0.01, 0.05
"""Tail of a row that counts as outlying, and outlier columns per row of a dual uniform weight."""


def outlier_columns(weight: Tensor) -> Tensor:
    """Return which columns of ``weight`` [R, K] hold outliers most often (bool [K]).

    Per row: columns in the outermost `OUTLYING_SHARE` of its positive or its negative values; over rows the
    ``COLUMNS_PER_ROW * R`` most frequent columns (ERQ, TPAMI 2025, dual uniform quantization).
    """
    positive = torch.where(weight > 0, weight, torch.nan)
    negative = torch.where(weight < 0, weight, torch.nan)
    high = positive.nanquantile(1 - OUTLYING_SHARE, dim=1, keepdim=True)
    low = negative.nanquantile(OUTLYING_SHARE, dim=1, keepdim=True)
    votes = ((weight > high) | (weight < low)).sum(dim=0)
    wanted = min(int(COLUMNS_PER_ROW * len(weight)), weight.shape[1] - 1)
    chosen = votes.argsort(descending=True, stable=True)[:wanted]
    mask = torch.zeros(weight.shape[1], dtype=torch.bool, device=weight.device)
    mask[chosen] = votes[chosen] > 0
    return mask

"""Rounding weights one column at a time, each error made up for by the columns still to come.

A layer's output error on the calibration tokens is quadratic in the weight error, so all that is needed
of the tokens is their second moment ``H = 2 sum x x^T``: [K, K] however many tokens there were.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.error_compensation.descent import Levels
from vit_ptq_bench.methods.quantization.error_compensation.solving import positive_factor
from vit_ptq_bench.methods.quantization.error_compensation.visiting import visit_layers
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.levels import (
    LevelQuantizer,
    cell_bounds,
    look_up,
    nearest_places,
)
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

BLOCK = 128
"""Columns whose compensation of later blocks is applied together (GPTQ, section 3.3, step 2)."""

HessianOf = Callable[[WeightedOperation, Tensor], Tensor]
"""Maps a layer and the rows of its quantized input ([n, K]) to a matrix like `second_moment`, float64."""


@dataclass(frozen=True)
class RowGrid:
    """The grid of a weight [R, K]: every row has its scale and zero point, or every entry has.

    Attributes:
        scale: float64 [R, 1] or [R, K].
        zero_point: float64, whole numbers, of the same shape.
        low, high: lowest and highest code.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    @classmethod
    def of(cls, quantizer: UniformQuantizer, weight: Tensor) -> "RowGrid":
        """Return the grid of a calibrated quantizer of ``weight`` ([R, K])."""
        scale, zero_point = (values.double() for values in quantizer.shaped(weight))
        if scale.numel() == 1:
            scale, zero_point = (v.expand(len(weight), 1) for v in (scale, zero_point))
        return cls(scale, zero_point, *quantizer.code_range)

    def at(self, columns: slice | Tensor) -> "RowGrid":
        """Return the grid of some columns."""
        if self.scale.shape[1] == 1:
            return self
        return replace(self, scale=self.scale[:, columns], zero_point=self.zero_point[:, columns])

    def step(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the scale of single entries ([n])."""
        return self.scale[rows, columns if self.scale.shape[1] > 1 else 0 * columns]

    def codes(self, weight: Tensor) -> Tensor:
        """Return the nearest codes of ``weight`` ([R, k], float64) as whole float64 numbers."""
        codes = torch.round(weight / self.scale) + self.zero_point
        return codes.clamp_(self.low, self.high)

    def values(self, codes: Tensor) -> Tensor:
        """Return what ``codes`` stand for."""
        return (codes - self.zero_point) * self.scale

    def nearest(self, column: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Return `codes` and `values` of one column, [R], the one at ``place``."""
        place = place if self.scale.shape[1] > 1 else 0
        scale, zero_point = self.scale[:, place], self.zero_point[:, place]
        codes = (column / scale).round_().add_(zero_point).clamp_(self.low, self.high)
        return codes, (codes - zero_point).mul_(scale)


@dataclass(frozen=True)
class LevelGrid:
    """The levels of a weight [R, K] in one table or in one per row; codes are places in it.

    Attributes:
        scale: float64 [R, 1].
        table: ascending, float64, [1, n] or [R, n].
        bounds: of `cell_bounds`, float64, [1, n - 1] or [R, n - 1].
    """

    scale: Tensor
    table: Tensor
    bounds: Tensor

    @classmethod
    def of(cls, quantizer: LevelQuantizer, weight: Tensor) -> "LevelGrid":
        """Return the levels of a calibrated quantizer of ``weight`` ([R, K])."""
        rows, table = len(weight), quantizer.table().double()
        scale = _per_row(quantizer.scale.double()[:, None], rows)
        table = table if len(table) == 1 else _per_row(table, rows)
        return cls(scale, table, cell_bounds(table))

    def at(self, columns: slice | Tensor) -> "LevelGrid":
        """Return the levels of some columns, which are those of all."""
        return self

    def codes(self, weight: Tensor) -> Tensor:
        """Return the places of the nearest levels of ``weight`` ([R, k], float64), as float64."""
        return nearest_places(weight / self.scale, self.bounds).double()

    def values(self, codes: Tensor) -> Tensor:
        """Return what ``codes`` stand for."""
        return look_up(codes.long(), self.table) * self.scale

    def nearest(self, column: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Return codes and `values` of one column, [R], whichever it is; codes are int64 here."""
        scale = self.scale[:, 0]
        places = nearest_places(column / scale, self.bounds)
        return places, look_up(places, self.table).mul_(scale)


def _per_row(values: Tensor, rows: int) -> Tensor:
    """What groups of neighbouring rows have in common, [groups, n], row by row, [rows, n]."""
    return values.repeat_interleave(rows // len(values), dim=0)


def grid_of(quantizer: Quantizer, weight: Tensor) -> Levels:
    """Return the levels of a calibrated quantizer of ``weight`` ([R, K]), uniform or in a table.

    Raises:
        MethodError: the form has no codes.
    """
    if isinstance(quantizer, LevelQuantizer):
        return LevelGrid.of(quantizer, weight)
    if isinstance(quantizer, UniformQuantizer):
        return RowGrid.of(quantizer, weight)
    raise MethodError(
        f"{quantizer.site}: weights of the form {quantizer.spec.scheme!r} have no codes to round to; "
        "use 'uniform' there"
    )


def second_moment(tokens: Tensor) -> Tensor:
    """Return ``H = 2 sum x x^T`` (float64, [K, K]) of tokens [n, K]."""
    return 2 * (tokens.T @ tokens).double()


def within_blocks(hessian: Tensor, size: int) -> Tensor:
    """Return ``hessian`` ([K, K]) with zeros between columns of different blocks of ``size`` columns."""
    block = torch.arange(len(hessian), device=hessian.device) // size
    return hessian * (block[:, None] == block)


def compensated_codes(
    weight: Tensor,
    grid: Levels,
    hessian: Tensor,
    damping: float,
    order_by_diagonal: bool,
    residual: Tensor | None = None,
) -> Tensor:
    """Return codes of ``weight`` chosen column by column (GPTQ, Frantar et al. 2023, algorithm 1).

    With ``residual`` the columns to come also make up for what a column's input lacks of the full-precision
    one (GPTAQ, Li et al. 2025, asymmetric calibration): column j with weights ``w_j`` leaves ``w_j r_j``,
    r_j being the input's lack, and least squares on the later columns F give them
    ``w_j (sum r_j x_F') (sum x_F x_F')^-1``, see `residual_moves`.

    Args:
        weight: [R, K].
        grid: the rows' levels, fixed beforehand.
        hessian: [K, K], from `second_moment`.
        damping: added to the diagonal, as a share of its mean.
        order_by_diagonal: take the columns with the largest second moment first.
        residual: ``2 sum (x_exact - x) x'``, [K, K], times the strength of the compensation; None: GPTQ.

    Returns:
        Codes as int32, [R, K].

    Raises:
        MethodError: the damped matrix is not positive definite.
    """
    hessian, remaining = hessian.clone(), weight.double().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1.0
    remaining[:, dead] = 0.0
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    order = torch.arange(len(hessian), device=hessian.device)
    if order_by_diagonal:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = _inverse_factor(hessian[order][:, order])
    moves = None if residual is None else residual_moves(residual[order][:, order], factor)
    codes = _round_in_order(remaining[:, order], grid.at(order), factor, moves)
    return codes[:, order.argsort()].to(torch.int32)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse: row j tells how column j's error moves later columns."""
    lower = positive_factor(hessian, "damping")
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return factor


def residual_moves(residual: Tensor, factor: Tensor) -> Tensor:
    """Return how far a unit weight in column j moves later columns to make up for its input's lack.

    Row j is ``R_jF (H_FF)^-1``, F being the columns behind j. With ``H^-1 = U' U`` (U upper) the inverse of
    the trailing block is ``U_FF' U_FF``, so all rows at once are ``((R U') above the diagonal) U``.

    Args:
        residual: R, [K, K], columns in the order of rounding.
        factor: U, [K, K].
    """
    return (residual @ factor.T).triu(1) @ factor


def _round_in_order(
    remaining: Tensor, grid: Levels, factor: Tensor, moves: Tensor | None = None
) -> Tensor:
    codes = torch.empty_like(remaining)
    for start in range(0, remaining.shape[1], BLOCK):
        own = slice(start, min(start + BLOCK, remaining.shape[1]))
        within = None if moves is None else moves[own, own]
        block = _Block.round(remaining[:, own], grid.at(own), factor[own, own], within)
        codes[:, own] = block.codes
        remaining[:, own.stop :] -= block.errors @ factor[own, own.stop :]
        if moves is not None:
            remaining[:, own.stop :] += block.taken @ moves[own, own.stop :]
    return codes


class _Block(NamedTuple):
    """What became of neighbouring columns, each [R, k]: their codes, errors, and values before rounding."""

    codes: Tensor
    errors: Tensor
    taken: Tensor

    @classmethod
    def round(
        cls, remaining: Tensor, grid: Levels, factor: Tensor, moves: Tensor | None
    ) -> "_Block":
        """Round ``remaining`` ([R, k]) one column after the other; ``factor`` and ``moves`` are [k, k]."""
        # One column is one row here: contiguous, which takes a third less time.
        columns = remaining.T.contiguous()
        codes, errors, product = (torch.empty_like(columns) for _ in range(3))
        taken = torch.empty_like(columns if moves is not None else columns[:0])
        for j, column in enumerate(columns):
            code, value = grid.nearest(column, j)
            codes[j] = code
            error = torch.sub(column, value, out=errors[j]).div_(factor[j, j])
            later, moved = columns[j + 1 :], product[j + 1 :]
            if moves is not None:
                taken[j] = column
            later -= torch.mul(factor[j, j + 1 :, None], error, out=moved)
            if moves is not None:
                later += torch.mul(moves[j, j + 1 :, None], column, out=moved)
        return cls(*(rows.T.contiguous() for rows in (codes, errors, taken)))


def round_columnwise(
    model: QuantizedModel,
    calibration: Calibration,
    *,
    damping: float = 0.01,
    order_by_diagonal: bool = True,
    neighbours: int | None = None,
    layers: Sequence[WeightedOperation] | None = None,
    hessian_of: HessianOf | None = None,
    progress: CalibrationProgress | None = None,
) -> None:
    """Set the codes of every quantized weight by `compensated_codes`, layer by layer in one pass.
    Each layer's second moment is that of the inputs which the layers before it, already rounded, give.

    Args:
        model: its weights are calibrated per row; its active quantizers are those that the layers' inputs go
            through.
        calibration: the images, shown as one batch.
        damping, order_by_diagonal: as in `compensated_codes`.
        neighbours: errors are made up for within blocks of so many columns; None: by all that come.
        layers: in execution order; None: all.
        hessian_of: gives each layer's matrix; None: `second_moment`.
        progress: called after each layer.

    Raises:
        MethodError: NaN or infinite activations, too small a damping, or weights of a form without codes.
    """

    def visit(layer: WeightedOperation, x: Tensor) -> None:
        weight, tokens = layer.weight.flatten(1), layer.columns(layer.input_quantizer(x))
        grid = grid_of(layer.weight_quantizer, weight)
        hessian = second_moment(tokens) if hessian_of is None else hessian_of(layer, tokens)
        if neighbours is not None:
            hessian = within_blocks(hessian, neighbours)
        layer.set_codes(compensated_codes(weight, grid, hessian, damping, order_by_diagonal))

    layers = model.weighted_operations() if layers is None else layers
    layers = [op for op in layers if not op.weight_quantizer.spec.is_float]
    if layers:
        visit_layers(model, calibration, layers, visit, progress=progress)

"""Weights solved again for the inputs and targets that quantization leaves: ridge, then codes, then bias."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.calibration.level_search import search_levels
from vit_ptq_bench.methods.quantization.error_compensation.columnwise import (
    compensated_codes,
    grid_of,
    round_columnwise,
)
from vit_ptq_bench.methods.quantization.error_compensation.descent import descend, scale_factors
from vit_ptq_bench.methods.quantization.error_compensation.moments import (
    ResidualMoments,
    residual_moments,
)
from vit_ptq_bench.methods.quantization.error_compensation.residual_aware import require_folds
from vit_ptq_bench.methods.quantization.error_compensation.solving import ridge_solution
from vit_ptq_bench.methods.quantization.error_compensation.two_streams import (
    LayerStreams,
    Target,
    TokenWeights,
    Visit,
    visit_streams,
)
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.quantizers.levels import TableQuantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

logger = logging.getLogger(__name__)

RIDGES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Ridges that cross-validation chooses from, as shares of the mean diagonal of the second moment."""

CLIPS = torch.linspace(0.4, 1.0, 20).tolist()
"""Factors on a row's range that its grid chooses from."""

SCALES = torch.linspace(0.8, 1.2, 9).tolist()
"""Factors on the scale of a row on a table of levels that it chooses from."""

FLOOR = 0.01
"""Added to a column's importance, whose mean is 1: a column that is zero in calibration may not stay so."""

HEAD_RIDGE, HEAD_DAMPING = 0.3, 0.1
"""Of the head, as shares of the mean diagonal: its rows are as few as the images."""

Solved = Literal["writers", "all", "none"]

CELL = 0.2
"""Farthest from the middle of a code's cell, in steps, that a weight is left open: nearer to the border the
first steps of a training would flip it, whichever way they go."""


@dataclass(frozen=True)
class Strength:
    """How far a weight moves towards the least-squares solution.

    Attributes:
        ridge: rho, as a share of the mean diagonal of the second moment.
        share: alpha in [0, 1], a factor on the ridge solution.
        remaining: share of the residual's energy that the move leaves, on images it was not fitted on; None
            where that was not asked.
    """

    ridge: float
    share: float = 1.0
    remaining: float | None = None


def cross_validated(moments: ResidualMoments, ridges: Sequence[float] = RIDGES) -> Strength:
    """Return the strength whose solution, fitted without a fold, leaves least of that fold's residual.

    For every fold f and ridge the solution D of the other folds changes the fold's energy by
    ``alpha^2 <D', H_f D> - 2 alpha <D, C_f>``; both sums over the folds give the best alpha in closed form.
    """
    second, cross = moments.second.sum(dim=0), moments.cross.sum(dim=0)
    linear, quadratic = torch.zeros(2, len(ridges), dtype=torch.float64, device=second.device)
    for own_second, own_cross in zip(moments.second, moments.cross, strict=True):
        rest = second - own_second
        values, vectors = torch.linalg.eigh(rest)
        mean = rest.diagonal().mean()
        fitted = vectors.T @ (cross - own_cross)
        seen, moved = vectors.T @ own_cross, vectors.T @ own_second @ vectors
        for i, ridge in enumerate(ridges):
            solution = fitted / (values.clamp_min(0) + ridge * mean + 1e-30)[:, None]
            linear[i] += (solution * seen).sum()
            quadratic[i] += (solution * (moved @ solution)).sum()
    share = (linear / quadratic.clamp_min(1e-300)).clamp(0, 1)
    change = share.square() * quadratic - 2 * share * linear
    best = int(change.argmin())
    energy = float(moments.residual.sum().clamp_min(1e-300))
    return Strength(ridges[best], float(share[best]), 1 + float(change[best]) / energy)


def clip_rows(quantizer: UniformQuantizer, weight: Tensor, importance: Tensor) -> None:
    """Give each row of ``weight`` [O, K] the shrunk range of least squared error, columns weighted.

    Args:
        quantizer: uniform, one scale per row.
        weight: float, [O, K].
        importance: of the columns, [K].
    """
    low, high = torch.aminmax(weight, dim=1)
    errors = []
    for factor in CLIPS:
        quantizer.set_range(low * factor, high * factor)
        errors.append((quantizer.fake_quantize(weight) - weight).square() @ importance)
    factor = torch.tensor(CLIPS, device=weight.device)[torch.stack(errors).argmin(dim=0)]
    quantizer.set_range(low * factor, high * factor)


def fit_rows(
    quantizer: UniformQuantizer | TableQuantizer, weight: Tensor, importance: Tensor
) -> None:
    """Give each row of ``weight`` [O, K] the levels of least squared error, columns weighted.

    Uniform grids by `clip_rows`; a table by `search_levels`, and then each row's scale.

    Args:
        quantizer: one scale per row.
        weight, importance: as in `clip_rows`.
    """
    if isinstance(quantizer, UniformQuantizer):
        clip_rows(quantizer, weight, importance)
        return
    search_levels(quantizer, weight)
    levels, found = quantizer.levels[-quantizer.choices :], quantizer.scale
    factors = torch.tensor(SCALES).to(found)
    errors = []
    for factor in factors:
        quantizer.set_levels(levels, found * factor)
        errors.append((quantizer.fake_quantize(weight) - weight).square() @ importance)
    quantizer.set_levels(levels, found * factors[torch.stack(errors).argmin(dim=0)])


@dataclass(frozen=True)
class Resolve:
    """Solves a layer's weight again, rounds it, and sets its bias to what makes up for the mean error.

    Patch embedding and head are only rounded; the head, which sees one row an image, with a strong ridge.

    Attributes:
        strength: the same for all layers; None: `cross_validated` for each.
        folds: of the images, for the cross-validation.
        solved: whose weights move before they are rounded: of layers that write the residual stream, of all,
            or of none. A layer that reads the stream gains nothing from it and loses elsewhere: on the
            calibration images the stream's error is what the layers before left of it, and that is far
            less than on others (docs/rose.md).
        columnwise: round by GPTQ; else to the nearest code.
        damping: GPTQ's, as a share of the mean diagonal.
        sweeps: of coordinate descent on the codes, each behind a refit of the rows' scales (`descent`).
        keep_open: leave weights in floating point, each within the cell of its code, for a reconstruction to
            go on from; else they are frozen.
    """

    strength: Strength | None = None
    folds: int = 4
    solved: Solved = "writers"
    columnwise: bool = True
    damping: float = 0.01
    sweeps: int = 0
    keep_open: bool = False

    @property
    def validates(self) -> bool:
        """Whether strengths are found by cross-validation."""
        return self.solved != "none" and self.strength is None

    def check(self, images: int) -> None:
        """Refuse a number of images that cannot be cut into the folds; raises `MethodError`."""
        if self.validates:
            require_folds(images, self.folds)

    def __call__(self, streams: LayerStreams) -> None:
        """Set weight and bias of one layer."""
        layer = streams.layer
        moves = self._moves(streams)
        moments = residual_moments(streams, self.folds if moves and self.validates else 1)
        original = layer.weight.detach().flatten(1).clone()
        weight = self._solved(layer, original, moments) if moves else original
        rounded = self._rounded(layer, weight, moments.second.sum(dim=0))
        lacking = (original.double() - rounded.double()) @ moments.mean_x
        layer.ensure_bias().copy_(moments.mean_e + lacking)

    def _moves(self, streams: LayerStreams) -> bool:
        """Whether the layer's weight is solved before it is rounded."""
        if self.solved == "all":
            return streams.layer.role not in ("patch_embed", "head")
        return self.solved == "writers" and streams.writes

    def _solved(self, layer: WeightedOperation, weight: Tensor, moments: ResidualMoments) -> Tensor:
        strength = self.strength or cross_validated(moments)
        logger.info("%s: %s", layer.name, strength)
        second, cross = moments.second.sum(dim=0), moments.cross.sum(dim=0)
        return weight + strength.share * ridge_solution(second, cross, strength.ridge).to(weight)

    def _rounded(self, layer: WeightedOperation, weight: Tensor, second: Tensor) -> Tensor:
        """Give the layer ``weight`` [O, K], rounded, and return what it now computes with."""
        layer.weight.copy_(weight.view_as(layer.weight))
        quantizer = layer.weight_quantizer
        if quantizer.spec.is_float:
            return weight
        assert isinstance(quantizer, UniformQuantizer | TableQuantizer)
        diagonal, damping = second.diagonal(), self.damping
        if layer.role == "head":
            second = second + HEAD_RIDGE * diagonal.mean() * torch.eye(len(second)).to(second)
            damping = HEAD_DAMPING
        fit_rows(quantizer, weight, (diagonal / diagonal.mean() + FLOOR).to(weight))
        codes = quantizer.quantize(weight)
        if self.columnwise:
            grid = grid_of(quantizer, weight)
            codes = compensated_codes(weight, grid, second, damping, True)
        for _ in range(self.sweeps):
            codes = refined(quantizer, weight, codes, second)
        if not self.keep_open:
            layer.set_codes(codes)
            return layer.weight.flatten(1)
        layer.weight.copy_(in_cells(quantizer, weight, codes).view_as(layer.weight))
        quantizer.active = True
        return quantizer.dequantize(codes)


def refined(
    quantizer: UniformQuantizer | TableQuantizer, weight: Tensor, codes: Tensor, second: Tensor
) -> Tensor:
    """Refit the rows' scales of ``quantizer`` to ``codes``, and return codes after one sweep of descent.

    Args:
        quantizer: of the weight, one scale per row.
        weight: what is wanted, [O, K].
        codes: int32 [O, K].
        second: of the layer's inputs, [K, K].
    """
    values = quantizer.dequantize(codes)
    factors = scale_factors(weight, values, second).to(quantizer.scale)
    if isinstance(quantizer, UniformQuantizer):
        quantizer.set_parameters(quantizer.scale * factors, quantizer.zero_point)
    else:
        quantizer.set_levels(quantizer.levels[-quantizer.choices :], quantizer.scale * factors)
    return descend(weight, codes, grid_of(quantizer, weight), second, 1)


def in_cells(quantizer: UniformQuantizer | TableQuantizer, weight: Tensor, codes: Tensor) -> Tensor:
    """Return the values nearest to ``weight`` [O, K] that lie well within the cells of ``codes``."""
    values = quantizer.dequantize(codes)
    if isinstance(quantizer, UniformQuantizer):
        below = above = quantizer.shaped(weight)[0]
    else:
        lowest, highest = quantizer.code_range
        below = values - quantizer.dequantize((codes - 1).clamp(min=lowest))
        above = quantizer.dequantize((codes + 1).clamp(max=highest)) - values
        below, above = (
            torch.where(gap > 0, gap, other) for gap, other in ((below, above), (above, below))
        )
    return weight.clamp(values - CELL * below, values + CELL * above)


def resolve_layers(
    model: QuantizedModel,
    calibration: Calibration,
    resolve: Resolve,
    *,
    target: Target = "stream",
    weights: TokenWeights | None = None,
    before: Visit | None = None,
    progress: CalibrationProgress | None = None,
) -> None:
    """Solve every layer again, in order; those behind a detector's backbone are rounded column by column.

    Args:
        model: its activations are calibrated.
        calibration: the images.
        resolve: what is done to each layer.
        target, weights: as in `visit_streams`.
        before: changes a layer's weight, in floating point, before it is solved.
        progress: called after each layer.

    Raises:
        MethodError: fewer images than folds, NaN or infinite activations, or too small a damping.
    """
    resolve.check(calibration.n_images)

    def visit(streams: LayerStreams) -> None:
        if before is not None:
            before(streams)
        resolve(streams)

    visit_streams(model, calibration, visit, target=target, weights=weights, progress=progress)
    behind = model.structure.layers_behind()
    for layer in behind:
        quantizer = layer.weight_quantizer
        if isinstance(quantizer, UniformQuantizer) and not quantizer.spec.is_float:
            matrix = layer.weight.flatten(1)
            clip_rows(quantizer, matrix, torch.ones_like(matrix[0]))
    model.activate()
    round_columnwise(model, calibration, damping=resolve.damping, layers=behind)

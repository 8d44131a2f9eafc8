"""Range rules by least squares: the scale that is the best one for the codes that it gives itself."""

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.calibration.range_rules import (
    HISTOGRAM_FROM,
    grouped,
    histogram,
    minmax_rule,
)
from vit_ptq_bench.methods.quantization.calibration.range_search import better
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import (
    TINY,
    scale_and_zero_point,
    widened,
)
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

SETTLED = 1e-4
"""Relative change of every scale below which a descent has come to its end."""


def least_squares_rule(rounds: int = 100, starts: int = 3) -> RangeRule:
    """Return a rule that sets scale and zero point by `least_squares_grid`.

    Large activations with one scale are given as a histogram of `range_rules.HISTOGRAM_BINS` bins.
    Quantizers of other forms than uniform get the extreme values.

    Args:
        rounds, starts: as in `least_squares_grid`.
    """

    def rule(site: Site, x: Tensor) -> None:
        quantizer = site.quantizer
        if not isinstance(quantizer, UniformQuantizer):
            minmax_rule(site, x)
            return
        values, counts = grouped(x, quantizer), None
        if quantizer.axis is None and not site.is_weight and x.numel() >= HISTOGRAM_FROM:
            values, counts = (part[None].double() for part in histogram(x))
        quantizer.set_parameters(
            *least_squares_grid(values, quantizer.spec, counts, rounds, starts)
        )

    return rule


def least_squares_grid(
    values: Tensor,
    spec: TensorSpec,
    counts: Tensor | None = None,
    rounds: int = 100,
    starts: int = 3,
) -> tuple[Tensor, Tensor]:
    """Return scales and zero points that are stationary in the squared error, the best of some descents.

    With codes ``q`` less the zero point for fixed scale D, the best scale for them is
    ``D = <x, q> / <q, q>``, and the best zero point the rounded difference of the means of codes and
    ``x / D``: taking codes, zero point and scale in turn never raises the error. Descents begin with the
    grid of the extreme values and with its scale halved again and again.

    Args:
        values: [G, N], one row per group.
        spec: gives bits and whether codes are symmetric; the zero point is 0 then.
        counts: how often each value occurs, [G, N]; None: once.
        rounds: of each descent at most; it ends when no scale moves by `SETTLED` of itself.
        starts: descents.

    Returns:
        Scale and zero point (whole), each [G], in the type of ``values``.
    """
    low, high = torch.aminmax(values, dim=1)
    if not spec.symmetric:
        low, high = widened(low, high)
    first, zero = scale_and_zero_point(low, high, spec.bits, spec.symmetric)
    weights = torch.ones_like(values[:1]) if counts is None else counts
    best = torch.full_like(first, torch.inf), first, zero
    for start in range(starts):
        scale = (first / 2**start).clamp_min(TINY)
        found = _descended(values, weights, spec, (scale, zero), rounds)
        levels = _codes(values, spec, *found) - found[1][:, None]
        error = (levels * found[0][:, None] - values).square().mul_(weights).sum(dim=1)
        best = better(best, (error, *found))
    return best[1], best[2]


def _descended(
    values: Tensor, weights: Tensor, spec: TensorSpec, grid: tuple[Tensor, Tensor], rounds: int
) -> tuple[Tensor, Tensor]:
    """Take codes, zero point and scale in turn, beginning with ``grid`` (scale, zero point)."""
    scale, zero = grid
    total = weights.sum(dim=1)
    mean = (values * weights).sum(dim=1) / total
    for _ in range(rounds):
        codes = _codes(values, spec, scale, zero)
        if not spec.symmetric:
            zero = ((codes * weights).sum(dim=1) / total - mean / scale).round()
        levels = codes - zero[:, None]
        weighted = levels * weights
        square = (weighted * levels).sum(dim=1)
        fitted = (weighted * values).sum(dim=1) / square
        # A group of zeros has levels of zero alone, for which every scale is as good.
        fitted = torch.where((square > 0) & (fitted > TINY), fitted, scale)
        moved = (fitted / scale - 1).abs().max()
        scale = fitted
        if float(moved) < SETTLED:
            break
    return scale, zero


def _codes(values: Tensor, spec: TensorSpec, scale: Tensor, zero: Tensor) -> Tensor:
    lowest = -(2 ** (spec.bits - 1)) if spec.symmetric else 0
    codes = (values / scale[:, None]).round_().add_(zero[:, None])
    return codes.clamp_(lowest, lowest + 2**spec.bits - 1)

"""Search of the border between the middle piece and the tails of each row of a weight (PWLQ)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.level_search import SortedRows
from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY
from vit_ptq_bench.methods.quantization.quantizers.piecewise import (
    PiecewiseQuantizer,
    positive_levels,
)

Border = Literal["grid", "gaussian"]
"""How the border is found: by the row's squared error, or by a formula for normal weights."""

GAUSSIAN = (0.86143114, 0.607901097496529)
"""``p = ln(a m + b)`` in standard deviations is nearly the best border of a normal row (PWLQ)."""

SMALLEST_SPLIT = 1e-3


@torch.no_grad()
def search_pieces(quantizer: PiecewiseQuantizer, weight: Tensor, border: Border) -> None:
    """Set each row's largest magnitude m and border p.

    Source: PWLQ (Fang et al., ECCV 2020). ``grid``: p / m of 0.1 to 0.9, then 0.01 at a time up to 0.1 around
    the best, then 0.001 at a time up to 0.01, by the row's squared error. ``gaussian``: the formula.

    Args:
        quantizer: gives rows and bits.
        weight: finite, of any shape that the quantizer takes.
        border: which of the two.
    """
    rows = grouped(weight, quantizer).detach().cpu().float()
    largest = rows.abs().amax(dim=1).double().clamp_min(TINY)
    if border == "gaussian":
        deviation = rows.double().std(dim=1, correction=0).clamp_min(TINY)
        factor, shift = GAUSSIAN
        split = deviation / largest * (factor * largest / deviation + shift).log()
        split = split.clamp(SMALLEST_SPLIT, 1 - SMALLEST_SPLIT)
    else:
        split = _best_split(SortedRows.of(rows.abs()), largest, quantizer.spec.bits)
    quantizer.set_pieces(largest.to(weight.device), split.to(weight.device))


def _best_split(magnitudes: SortedRows, largest: Tensor, bits: int) -> Tensor:
    """The border of each row; levels have both signs, so magnitudes on the positive half cost the same."""
    best = torch.full_like(largest, 0.5)
    error = torch.full_like(largest, torch.inf)
    for step, reach in ((0.1, 4), (0.01, 10), (0.001, 10)):
        centre = best
        for away in range(-reach, reach + 1):
            split = (centre + step * away).clamp(SMALLEST_SPLIT, 1 - SMALLEST_SPLIT)
            found = magnitudes.errors(largest[:, None] * positive_levels(split, bits))
            best = torch.where(found < error, split, best)
            error = torch.minimum(found, error)
    return best


def piecewise_rule(border: Border, otherwise: RangeRule) -> RangeRule:
    """Return a rule that searches the border of piecewise quantizers, and leaves others to ``otherwise``."""

    def rule(site: Site, x: Tensor) -> None:
        if isinstance(site.quantizer, PiecewiseQuantizer):
            search_pieces(site.quantizer, x, border)
        else:
            otherwise(site, x)

    return rule

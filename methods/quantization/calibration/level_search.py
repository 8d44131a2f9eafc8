"""Search of the levels of a layer's weight: the subset of a form's candidates of least squared error.

Every level but the first and the last meets its neighbours half-way, so a set of levels costs the sum of
what pairs of neighbours cost; the best set of a given size is a cheapest path, found exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule
from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped
from vit_ptq_bench.methods.quantization.model.structure import Site
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY
from vit_ptq_bench.methods.quantization.quantizers.levels import TableQuantizer

BINS = 4096
"""Bins of a layer's histogram: at 4 bits more than a hundred per level."""

FACTORS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
"""Scales that the first choice is made with, in units of the one that puts the row's extreme on the largest
candidate."""

FEW_BITS = 4
"""Most bits at which all `FACTORS` are tried and levels chosen twice; beyond, levels are dense and the
extreme decides."""

REFITS = 3
"""How often scales are refitted behind each choice of levels."""


@dataclass(frozen=True)
class SortedRows:
    """Rows in ascending order with running sums: what levels cost a row follows without looking at it again.

    Attributes:
        values: float64 [R, K], ascending.
        sums: of the first 0 to K values, float64 [R, K + 1].
        squares: of all, float64 [R].
    """

    values: Tensor
    sums: Tensor
    squares: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> SortedRows:
        """Return them for ``rows`` (float32, [R, K], on the CPU)."""
        # numpy's sort of float32 takes a tenth of torch's.
        values = torch.from_numpy(np.sort(rows.numpy(), axis=1)).double()
        sums = torch.nn.functional.pad(values.cumsum(dim=1), (1, 0))
        return cls(values, sums, values.square().sum(dim=1))

    def cells(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return count and sum of the values nearest to each level (float64, [R, n]).

        Args:
            levels: ascending, float64 [R, n].
        """
        bounds = (levels[:, 1:] + levels[:, :-1]) / 2
        inner = torch.searchsorted(self.values, bounds.contiguous())
        last = inner.new_full((len(levels), 1), self.values.shape[1])
        ends = torch.cat([torch.zeros_like(last), inner, last], dim=1)
        return ends.diff(dim=1).double(), self.sums.gather(1, ends).diff(dim=1)

    def errors(self, levels: Tensor) -> Tensor:
        """Return the squared error of each row on ``levels`` (float64, [R]); shapes as in `cells`."""
        counts, sums = self.cells(levels)
        return self.squares + (levels.square() * counts - 2 * levels * sums).sum(dim=1)

    def refitted(self, levels: Tensor, scale: Tensor) -> Tensor:
        """Return ``<q, w> / <q, q>``, q the levels nearest to ``w / scale``: never a larger error.

        Args:
            levels: ascending, float64 [n].
            scale: float64 [R], > 0; a row keeps its own where the fit is not positive.
        """
        counts, sums = self.cells(scale[:, None] * levels)
        along, own = (levels * sums).sum(dim=1), (levels.square() * counts).sum(dim=1)
        return torch.where((along > 0) & (own > 0), along / own.clamp_min(1e-300), scale)


@dataclass(frozen=True)
class Histogram:
    """All rows of a layer over their scales, in bins, with running sums.

    An entry counts as many times as the square of its row's scale, so that errors are those of the weight,
    and lies at the centre of its bin.

    Attributes:
        low, width: of the first bin.
        moments: number, sum and sum of squares of what lies below each bin's lower end, and of all,
            float64 [3, bins + 1].
    """

    low: float
    width: float
    moments: Tensor

    @classmethod
    def of(cls, rows: Tensor, scale: Tensor, bins: int = BINS) -> Histogram:
        """Return it for ``rows`` (float32, [R, K], on the CPU) over ``scale`` (float64, [R], > 0)."""
        values = rows / scale[:, None].float()
        low, high = (float(end) for end in torch.aminmax(values))
        width = max(high - low, TINY) / bins
        places = values.sub_(low).div_(width).int().clamp_(0, bins - 1).flatten()
        weight = scale.square()[:, None].expand_as(rows).flatten()
        count = torch.bincount(places, weight, bins)
        centres = low + width * (torch.arange(bins, dtype=torch.float64) + 0.5)
        counted = torch.stack([count, count * centres, count * centres.square()])
        return cls(low, width, torch.nn.functional.pad(counted.cumsum(dim=1), (1, 0)))

    def below(self, bounds: Tensor) -> Tensor:
        """Return the `moments` of what lies below ``bounds``, whole bins, [3, *bounds.shape]."""
        bins = self.moments.shape[1] - 1
        places = ((bounds - self.low) / self.width).round().clamp(0, bins).long()
        return self.moments[:, places]


class Distribution(Protocol):
    """What levels are chosen for: a `Histogram`, or entries themselves.

    Attributes:
        moments: the last column has number, sum and sum of squares of all.
    """

    @property
    def moments(self) -> Tensor:
        """Float64 [3, ...]."""

    def below(self, bounds: Tensor) -> Tensor:
        """Return number, sum and sum of squares of what lies below ``bounds``, [3, *bounds.shape]."""


def _cost(start: Tensor, end: Tensor, level: Tensor) -> Tensor:
    """Squared error of what lies between two bounds, whose `Histogram.below` are given, on a level."""
    count, total, squares = (end - start).unbind()
    return squares - 2 * level * total + level.square() * count


@dataclass(frozen=True)
class Pairs:
    """All pairs of N candidates, and the sums that they have: the same whatever the scale.

    Attributes:
        first, second: places of the smaller and of the larger one, int64 [P].
        sums: ascending, float64 [S]; integers have few for their many pairs.
        own: the place of each pair's sum, int64 [P].
    """

    first: Tensor
    second: Tensor
    sums: Tensor
    own: Tensor


@cache
def pairs_of(candidates: tuple[float, ...]) -> Pairs:
    """Return the `Pairs` of candidates in ascending order."""
    known = torch.tensor(candidates, dtype=torch.float64)
    first, second = torch.triu_indices(len(known), len(known), 1)
    sums, own = torch.unique(known[first] + known[second], return_inverse=True)
    return Pairs(first, second, sums, own)


def cheapest_levels(
    histogram: Distribution, candidates: Tensor, scales: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return the levels of least squared error, each value on the nearest.

    Args:
        histogram: of the layer.
        candidates: ascending, float64 [N], on the CPU.
        scales: float64 [F]; each of the F times the candidates is a problem of its own.
        count: how many are chosen, of 1 to N.

    Returns:
        Places of the chosen candidates, ascending (int64, [F, count]), and their squared errors (float64,
        [F]).
    """
    scaled = scales[:, None] * candidates
    at = histogram.below(scaled)
    if count == len(candidates):
        return _all_of_them(histogram, scaled, at)
    between = _costs_between(histogram, candidates, scales, at)
    # As many places as a level can have: all but those that the levels before and behind it need.
    room = len(candidates) - count + 1
    steps = [between[:, k : k + room, k + 1 : k + 1 + room] for k in range(count - 1)]
    costs = [_cost(torch.zeros_like(at), at, scaled)[:, :room]]
    for step in steps:
        costs.append((costs[-1][:, :, None] + step).amin(dim=1))
    end = at[..., -room:]
    everything = histogram.moments[:, -1].reshape(3, 1, 1).expand_as(end)
    error, last = (costs.pop() + _cost(end, everything, scaled[:, -room:])).min(dim=1)
    # Where a path came from is asked of its own places alone: of all it is half of the work.
    chosen = [last]
    for step, cost in zip(reversed(steps), reversed(costs), strict=True):
        behind = step.gather(2, chosen[0][:, None, None].expand(-1, room, 1))[..., 0]
        chosen.insert(0, (cost + behind).argmin(dim=1))
    return torch.stack(chosen, dim=1) + torch.arange(count), error


def _costs_between(
    histogram: Distribution, candidates: Tensor, scales: Tensor, at: Tensor
) -> Tensor:
    """What lies between two neighbouring levels costs, smaller and larger one; infinity the other way round.

    Args:
        histogram, candidates, scales: as for `cheapest_levels`.
        at: what lies below each candidate, [3, F, N].

    Returns:
        Float64 [F, N, N].
    """
    size, pairs = len(candidates), pairs_of(tuple(candidates.tolist()))
    middle = histogram.below(scales[:, None] * (pairs.sums / 2))[..., pairs.own]
    left, right = (scales[:, None] * candidates[places] for places in (pairs.first, pairs.second))
    costs = _cost(at[..., pairs.first], middle, left) + _cost(middle, at[..., pairs.second], right)
    between = candidates.new_full((len(scales), size, size), torch.inf)
    between[:, pairs.first, pairs.second] = costs
    return between


def _all_of_them(histogram: Distribution, candidates: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """What `cheapest_levels` returns where nothing is left out; ``at`` is what lies below each candidate."""
    left, right = candidates[:, :-1], candidates[:, 1:]
    between = histogram.below((left + right) / 2)
    inner = _cost(at[..., :-1], between, left) + _cost(between, at[..., 1:], right)
    below = _cost(torch.zeros_like(at[..., 0]), at[..., 0], candidates[:, 0])
    everything = histogram.moments[:, -1].reshape(3, 1).expand_as(at[..., -1])
    above = _cost(at[..., -1], everything, candidates[:, -1])
    places = torch.arange(candidates.shape[1], device=candidates.device).expand_as(candidates)
    return places.clone(), below + inner.sum(dim=1) + above


@torch.no_grad()
def search_levels(quantizer: TableQuantizer, weight: Tensor) -> None:
    """Set one table for the layer and one scale per row, by the weight's squared error.

    Source: SubsetQ (Oh et al., ECCV 2022), all subsets; the exact search is ours. The table is the best for
    the histogram of all rows over their scales; then ``s_r = <q, w> / <q, q>`` three times; up to 4 bits
    table and scales once more. On the CPU, where sums have one order.

    Args:
        quantizer: gives candidates and rows.
        weight: finite, of any shape that the quantizer takes.
    """
    rows = grouped(weight, quantizer).detach().cpu().float()
    rows = rows.abs() if quantizer.mirrored else rows
    candidates = quantizer.candidates(quantizer.spec.bits).double()
    scale = (rows.abs().amax(dim=1).double() / candidates.abs().max()).clamp_min(TINY)
    ordered, levels = SortedRows.of(rows), candidates
    choices: Sequence[Sequence[float]] = [FACTORS, (1.0,)]
    for factors in choices if quantizer.spec.bits <= FEW_BITS else choices[1:]:
        tried = torch.tensor(factors, dtype=torch.float64)
        found, errors = cheapest_levels(
            Histogram.of(rows, scale), candidates, tried, quantizer.choices
        )
        best = int(errors.argmin())
        levels, scale = candidates[found[best]], scale * factors[best]
        for _ in range(REFITS):
            scale = ordered.refitted(levels, scale)
    quantizer.set_levels(levels.to(weight.device), scale.to(weight.device))


def level_rule(otherwise: RangeRule) -> RangeRule:
    """Return a rule that searches tables of levels, and leaves other forms to ``otherwise``."""

    def rule(site: Site, x: Tensor) -> None:
        if isinstance(site.quantizer, TableQuantizer):
            search_levels(site.quantizer, x)
        else:
            otherwise(site, x)

    return rule

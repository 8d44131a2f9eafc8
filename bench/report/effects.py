"""Effects in a factorial of two levels a factor, with intervals paired over the evaluation images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from vit_ptq_bench.bench.records.outcomes import Outcomes
from vit_ptq_bench.bench.report.significance import SIGNIFICANCE, Z

Corner = tuple[bool, ...]
"""A combination: of each factor, whether it is at its second level."""

Contrast = Mapping[Corner, float]
"""A weighted sum of combinations."""


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        value: its metric, in percent.
        outcomes: bool [n], whose share ``value`` is; None: there are none, or the metric is no such share.
    """

    value: float
    outcomes: Outcomes | None


Cells = Mapping[Corner, Mapping[int, Result]]
"""Results by combination and seed."""


@dataclass(frozen=True)
class Estimate:
    """A contrast in points.

    Attributes:
        points: the contrast of the means over seeds.
        low, high: 95 % interval; None where runs have no outcomes to pair.
        seeds: that all combinations of the contrast have.
    """

    points: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]


def corners(factors: int) -> Iterator[Corner]:
    """Yield all combinations, the one without any part first."""
    return product((False, True), repeat=factors)


def only(factors: int, *those: int) -> Corner:
    """Return the combination with those factors alone at their second level."""
    return tuple(place in those for place in range(factors))


def without(factors: int, left_out: int) -> Corner:
    """Return the combination with all factors but one at their second level."""
    return tuple(place != left_out for place in range(factors))


def gain_alone(factors: int, factor: int) -> Contrast:
    """Return what a part adds to none of the others."""
    return {only(factors, factor): 1.0, only(factors): -1.0}


def gain_last(factors: int, factor: int) -> Contrast:
    """Return what a part adds to all of the others."""
    return {only(factors, *range(factors)): 1.0, without(factors, factor): -1.0}


def main_effect(factors: int, factor: int) -> Contrast:
    """Return what a part adds on average over all combinations of the others."""
    share = 2.0 ** (1 - factors)
    return {corner: share if corner[factor] else -share for corner in corners(factors)}


def interaction(factors: int, first: int, second: int) -> Contrast:
    """Return how much more one part adds with another than without, on average over the rest.

    It is the same for the other with the one; negative: the two do the same thing in part.
    """
    share = 2.0 ** (2 - factors)
    return {
        corner: share if corner[first] == corner[second] else -share for corner in corners(factors)
    }


def estimate(contrast: Contrast, cells: Cells) -> Estimate | None:
    """Return a contrast of results with its interval; None if a combination or a common seed is missing."""
    runs = [cells.get(corner, {}) for corner in contrast]
    seeds = sorted(set.intersection(*(set(run) for run in runs)))
    if not seeds:
        return None
    weights = np.array(list(contrast.values()))
    values = np.array([[run[seed].value for seed in seeds] for run in runs])
    points = float(weights @ values.mean(axis=1))
    outcomes = _outcomes(runs, seeds)
    if outcomes is None:
        return Estimate(points, None, None, tuple(seeds))
    half = 100 * half_width(np.tensordot(weights, outcomes, axes=1))
    return Estimate(points, points - half, points + half, tuple(seeds))


def _outcomes(runs: list[Mapping[int, Result]], seeds: list[int]) -> NDArray[np.float64] | None:
    """Outcomes [combinations, seeds, images]; None where some are missing or are of other images."""
    found = [[run[seed].outcomes for seed in seeds] for run in runs]
    known = [one for row in found for one in row if one is not None]
    if len(known) < len(runs) * len(seeds) or len({len(one) for one in known}) > 1:
        return None
    return np.array(known, dtype=np.float64).reshape(len(runs), len(seeds), -1)


def half_width(contrast: NDArray[np.float64]) -> float:
    """Return half of the 95 % interval of the mean of a contrast [seeds, images].

    One seed: the normal approximation over images, for two runs that of `Paired`. Several: images and seeds
    count as drawn both, crossed with each other (two-way analysis of variance without replication). The
    mean's variance is ``(MS_images + max(MS_seeds - MS_rest, 0)) / (seeds images)``, and the interval that
    of Student's t with Satterthwaite's degrees of freedom: few seeds that differ make it wide.
    """
    seeds, images = contrast.shape
    if seeds == 1 or images == 1:
        return Z * sqrt(contrast.var() / contrast.size)
    by_image, by_seed, mean = contrast.mean(axis=0), contrast.mean(axis=1), contrast.mean()
    rest = contrast - by_image - by_seed[:, None] + mean
    freedom = images - 1, seeds - 1, (images - 1) * (seeds - 1)
    squares = seeds * (by_image - mean) ** 2, images * (by_seed - mean) ** 2, rest**2
    parts = [float(s.sum()) / f / contrast.size for s, f in zip(squares, freedom, strict=True)]
    if parts[1] <= parts[2]:  # the seeds differ no more than images make them
        parts[1:] = [0.0, 0.0]
    variance = parts[0] + parts[1] - parts[2]
    if variance == 0:
        return 0.0
    satterthwaite = variance**2 / sum(p**2 / f for p, f in zip(parts, freedom, strict=True))
    return float(t.ppf(1 - SIGNIFICANCE / 2, satterthwaite)) * sqrt(variance)

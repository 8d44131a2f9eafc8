"""Which results of one table are told apart, and the ranks that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from vit_ptq_bench.bench.records.outcomes import Outcomes, Replicates
from vit_ptq_bench.bench.report.significance import SIGNIFICANCE, holm, pooled

Matrix = NDArray[np.float64]

FEW = 100.0
"""Images (squared differences) apart up to which a test is exact; beyond, its sum is normal."""


Basis = Literal["tests", "intervals", "nothing"]
"""What a place rests on: paired tests with all others; for some pairs 95 % intervals; not even these."""

SIGNS: dict[Basis, str] = {"tests": "", "intervals": " ~", "nothing": " -"}
"""Behind a place, what it rests on."""


@dataclass(frozen=True)
class Seen:
    """What is known of one row of a table.

    Attributes:
        value: the metric in percent, mean over seeds.
        outcomes: of each seed, bool [n], whose share is the metric; None: it is no share, or they are gone.
        replicates: of each seed, the metric on drawn image sets, [R]; None: there are none.
        interval: 95 % interval of ``value``; None: it is not known.
        compares: whether it is of no class of its own, so that it can be the best.
    """

    value: float
    outcomes: Sequence[Outcomes] | None = None
    replicates: Sequence[Replicates] | None = None
    interval: tuple[float, float] | None = None
    compares: bool = True


@dataclass(frozen=True)
class Standing:
    """The place of one row.

    Attributes:
        rank: 1 and how many rows are better beyond chance, and at least the rank of every row of a higher
            figure. None: it cannot be held against the others.
        beats: how many rows are worse beyond chance.
        basis: what that rests on.
        like_best: whether it could be held against the best row of those that compare, or is it, and is
            not told apart from it.
    """

    rank: int | None
    beats: int
    basis: Basis = "tests"
    like_best: bool = False

    @property
    def tested(self) -> bool:
        """Whether it could be tested against all other rows."""
        return self.basis == "tests"


def standings(rows: Sequence[Seen]) -> list[Standing]:
    """Return the place of each row of one table, in the order given.

    All pairs are tested on the same images and corrected by Holm's method for their number. A pair that
    cannot be tested is told apart where the two 95 % intervals do not meet: at about 0.006 for independent
    rows, and less for the same images, but not corrected. A pair without intervals is not told apart, and a
    row that nothing can be held against stands aside. Of equal figures the one given first is the better.
    """
    p = corrected(p_values(rows))
    value = np.array([row.value for row in rows])
    untested, apart, unknown = np.isnan(p), *_by_intervals(rows)
    np.fill_diagonal(untested, False)
    better = ((p < SIGNIFICANCE) | (untested & apart)) & (value[None, :] > value[:, None])
    unknown &= untested
    aside = unknown.sum(axis=1) == max(1, len(rows) - 1)
    unknown[~aside[:, None] & aside[None, :]] = False  # it says nothing of the others
    basis = [_basis(unknown[i].any(), untested[i][~aside].any()) for i in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda index: -rows[index].value)
    best = next((index for index in order if rows[index].compares), None)
    ranks, last = [0] * len(rows), 1
    for index in order:
        last = max(last, 1 + int(better[index].sum())) if basis[index] != "nothing" else last
        ranks[index] = last
    return [
        Standing(
            rank=None if basis[index] == "nothing" else ranks[index],
            beats=int(better[:, index].sum()),
            basis=basis[index],
            like_best=index == best or (best is not None and _alike(index, best, better, basis)),
        )
        for index in range(len(rows))
    ]


def _alike(index: int, best: int, better: NDArray[np.bool_], basis: Sequence[Basis]) -> bool:
    """Whether a row could be held against the best and is not told apart from it."""
    known = "nothing" not in (basis[index], basis[best])
    return known and not better[index, best] and not better[best, index]


def _basis(unknown: bool, untested: bool) -> Basis:
    if unknown:
        return "nothing"
    return "intervals" if untested else "tests"


def _by_intervals(rows: Sequence[Seen]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pairs have intervals that do not meet, and which lack one, [m, m] each."""
    ends = np.array([row.interval or (np.nan, np.nan) for row in rows]).reshape(-1, 2)
    below = ends[:, None, 1] < ends[None, :, 0]
    missing = np.isnan(ends).any(axis=1)
    unknown = missing[:, None] | missing[None, :]
    np.fill_diagonal(unknown, False)
    return below | below.T, unknown


def corrected(p: Matrix) -> Matrix:
    """Return p values [m, m] corrected for the number of pairs tested; NaN (not tested) stays."""
    upper = np.triu_indices(len(p), 1)
    raw = p[upper]
    known = ~np.isnan(raw)
    raw[known] = holm(raw[known].tolist())
    result = np.full_like(p, np.nan)
    result[upper] = raw
    return np.fmax(result, result.T)


def p_values(rows: Sequence[Seen]) -> Matrix:
    """Return the two-sided p value of each pair, [m, m]; NaN on the diagonal and where there is no test."""
    p = np.full((len(rows), len(rows)), np.nan)
    value = np.array([row.value for row in rows])
    for members in _of_one_size([row.replicates for row in rows]):
        found = [np.mean(rows[index].replicates or (), axis=0) for index in members]
        p[np.ix_(members, members)] = by_replicates(np.array(found), value[members])
    for members in _of_one_size([row.outcomes for row in rows]):
        p[np.ix_(members, members)] = by_outcomes([rows[index].outcomes or () for index in members])
    np.fill_diagonal(p, np.nan)
    return p


def _of_one_size(seen: Sequence[Sequence[NDArray[Any]] | None]) -> list[list[int]]:
    """Numbers of the rows that have something, by how many entries each of it has."""
    groups: dict[int, list[int]] = {}
    for index, arrays in enumerate(seen):
        sizes = {len(array) for array in arrays or ()}
        if len(sizes) == 1:
            groups.setdefault(sizes.pop(), []).append(index)
    return list(groups.values())


def by_outcomes(results: Sequence[Sequence[Outcomes]]) -> Matrix:
    """Return p values of `pooled` for all pairs, [m, m]; of many images apart by the normal distribution.

    With an image's difference between two results (means over seeds) as unit, ``sum / sqrt(sum of squares)``
    is normal where nothing tells the two apart: McNemar's statistic for images seen by several seeds.
    """
    hits = np.array([np.mean(seeds, axis=0) for seeds in results], dtype=np.float64)
    gram, total = hits @ hits.T, hits.sum(axis=1)
    squares = np.diag(gram)[:, None] + np.diag(gram)[None, :] - 2 * gram
    z = np.abs(total[:, None] - total[None, :]) / np.sqrt(np.maximum(squares, 1e-30))
    p: Matrix = 2 * norm.sf(z)
    for first, second in zip(*np.nonzero(np.triu(squares < FEW, 1)), strict=True):
        p[first, second] = p[second, first] = pooled(results[first], results[second])
    return p


def by_replicates(replicates: Matrix, values: Matrix) -> Matrix:
    """Return p values of all pairs by the paired bootstrap over images, [m, m].

    The standard error of a difference is its deviation over drawn image sets, the same for both results.

    Args:
        replicates: the metric of each result on each set, [m, R].
        values: the metric on all images, [m].
    """
    sets = replicates.shape[1]
    covariance = np.atleast_2d(np.cov(replicates.astype(np.float64)))
    variance = np.diag(covariance)[:, None] + np.diag(covariance)[None, :] - 2 * covariance
    apart = np.abs(values[:, None] - values[None, :])
    error = np.sqrt(np.maximum(variance, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(apart > 0, apart / error, 0.0)
    return np.asarray(2 * t.sf(statistic, sets - 1))

"""Which results of one table are told apart, and the ranks that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from vit_ptq_bench.bench.records.outcomes import Outcomes, Replicates
from vit_ptq_bench.bench.report.significance import SIGNIFICANCE, holm, pooled

Matrix = NDArray[np.float64]

FEW = 100.0
"""Images (squared differences) apart up to which a test is exact; beyond, its sum is normal."""


@dataclass(frozen=True)
class Seen:
    """What is known of one row of a table.

    Attributes:
        value: the metric in percent, mean over seeds.
        outcomes: of each seed, bool [n], whose share is the metric; None: it is no share, or they are gone.
        replicates: of each seed, the metric on drawn image sets, [R]; None: there are none.
    """

    value: float
    outcomes: Sequence[Outcomes] | None = None
    replicates: Sequence[Replicates] | None = None


@dataclass(frozen=True)
class Standing:
    """The place of one row.

    Attributes:
        rank: 1 and how many rows are better beyond chance. Rows that no test separates from the best share
            rank 1.
        beats: how many rows are worse beyond chance.
        tested: whether it could be tested against all other rows.
    """

    rank: int
    beats: int
    tested: bool


def standings(rows: Sequence[Seen]) -> list[Standing]:
    """Return the place of each row of one table, in the order given.

    All pairs are tested on the same images and corrected by Holm's method for their number; a pair that
    cannot be tested separates nothing.
    """
    p = corrected(p_values(rows))
    value = np.array([row.value for row in rows])
    better = (p < SIGNIFICANCE) & (value[None, :] > value[:, None])
    return [
        Standing(
            rank=1 + int(better[index].sum()),
            beats=int(better[:, index].sum()),
            tested=not np.isnan(np.delete(p[index], index)).any(),
        )
        for index in range(len(rows))
    ]


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

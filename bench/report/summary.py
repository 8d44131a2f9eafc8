"""The answers: the best of each table, the cheapest of those like it, and who does well overall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from vit_ptq_bench.bench.report.tables import Row, Table

DRAWS = 1000
"""Sets of cells drawn with replacement, for intervals of what is averaged over cells."""

FEWEST = 3
"""Cells with fewer of which nothing can be said of their spread."""


@dataclass(frozen=True)
class Choice:
    """The answer for one table.

    Attributes:
        table: which.
        best: the row of the highest figure.
        equal: the others that no test separates from it, best first.
        cheapest: of all these the one that calibrates in the least time.
        tested: whether there was anything to tell them apart by.
    """

    table: Table
    best: Row
    equal: tuple[Row, ...]
    cheapest: Row
    tested: bool


def choices(found: Sequence[Table]) -> list[Choice]:
    """Return the choice of every table that has a result, in the order given."""
    return [_choice(table) for table in found if table.ranked]


def _choice(table: Table) -> Choice:
    best, *others = table.ranked
    equal = [row for row in others if _is_like_the_best(row)]
    cheapest = min((best, *equal), key=lambda row: (row.time, row.label))
    return Choice(table, best, tuple(equal), cheapest, not others or _is_tested(best))


def _is_like_the_best(row: Row) -> bool:
    """Whether tests did not separate it, which what was not tested cannot say."""
    return row.standing is not None and row.standing.rank == 1 and row.standing.tested


def _is_tested(row: Row) -> bool:
    return row.standing is not None and row.standing.tested


@dataclass(frozen=True)
class Average:
    """A mean over cells.

    Attributes:
        value: the mean.
        low, high: its 95 % interval over drawn sets of cells; None with fewer than `FEWEST`.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Overall:
    """How a method does over models and bit widths.

    Attributes:
        label: of its rows.
        cells: tables in which it has a result.
        rank: its mean rank by figures among the rows of a table, ties at their mean; 1 is the best.
        wins: in percent, the share of the other rows of a table that it is better than beyond chance.
    """

    label: str
    cells: int
    rank: Average
    wins: Average


def overall(found: Sequence[Table]) -> list[Overall]:
    """Return how each method does over tables, those with most cells first, then by mean rank.

    Figures of unlike cells are never averaged, for the hardest cell would decide alone: within each table
    methods have ranks, and these are averaged.

    Args:
        found: tables of one task and protocol, of which those that are `counted` count.
    """
    ranks: dict[str, list[float]] = {}
    wins: dict[str, list[float]] = {}
    for table in counted(found):
        rows = table.ranked
        values = [-(row.value or 0.0) for row in rows]
        for row, rank in zip(rows, rankdata(values), strict=True):
            beats = 0 if row.standing is None else row.standing.beats
            ranks.setdefault(row.label, []).append(float(rank))
            wins.setdefault(row.label, []).append(100 * beats / (len(rows) - 1))
    result = [
        Overall(label, len(own), averaged(own), averaged(wins[label]))
        for label, own in ranks.items()
    ]
    return sorted(result, key=lambda one: (-one.cells, one.rank.value, one.label))


def counted(found: Sequence[Table]) -> list[Table]:
    """Return the tables whose ranks are averaged.

    What has fewer than two results tells nothing. Tables of bits that differ from operation to operation have
    other rows than the rest and are left out, unless there are no other tables.
    """
    alike = [table for table in found if not table.place.shared_out] or found
    return [table for table in alike if len(table.ranked) > 1]


def averaged(values: Sequence[float]) -> Average:
    """Return the mean of cells with its interval; the same values give the same interval."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < FEWEST:
        return Average(mean, None, None)
    drawn: NDArray[np.int64] = np.random.default_rng(0).integers(0, len(array), (DRAWS, len(array)))
    low, high = np.quantile(array[drawn].mean(axis=1), (0.025, 0.975))
    return Average(mean, float(low), float(high))

"""The answers: the best of each table, the cheapest of those like it, and who does well overall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from vit_ptq_bench.bench.report.classes import MARK
from vit_ptq_bench.bench.report.standings import Basis
from vit_ptq_bench.bench.report.tables import Row, Table

DRAWS = 1000
"""Sets of cells drawn with replacement, for intervals of what is averaged over cells."""

FEWEST = 5
"""Cells with fewer of which nothing is said of their spread: of three drawn from three many are the same."""

FEWEST_ROWS = 3
"""Methods with fewer of which there is no choice among them."""

USEFUL = 0.25
"""Share of full precision's figure that the best has to keep; a method that keeps less is no answer."""


@dataclass(frozen=True)
class Choice:
    """The answer for one table.

    Attributes:
        table: which.
        best: the row of the highest figure, of those that compare.
        equal: the others of these that are not told apart from it, best first.
        cheapest: of all these the one that calibrates in the least time; None: the best could not be held
            against the others.
        besides: the rows that do not compare and are better than the best, or not told apart from it.
    """

    table: Table
    best: Row
    equal: tuple[Row, ...]
    cheapest: Row | None
    besides: tuple[Row, ...] = ()

    @property
    def basis(self) -> Basis:
        """What `equal` and `cheapest` rest on."""
        return "nothing" if self.best.standing is None else self.best.standing.basis

    @property
    def tested(self) -> bool:
        """Whether the best could be tested against all others."""
        return self.basis == "tests"


def choices(found: Sequence[Table]) -> list[Choice]:
    """Return the choice of every table that has one, in the order given, those of shared out bits last.

    There is none among fewer than `FEWEST_ROWS` methods, and none whose best keeps less than `USEFUL` of full
    precision.
    """
    chosen = [choice for choice in map(_choice, found) if choice is not None]
    return sorted(chosen, key=lambda choice: choice.table.place.shared_out)


def _choice(table: Table) -> Choice | None:
    compared = [row for row in table.ranked if not row.classes]
    if len(table.ranked) < FEWEST_ROWS or not compared or not _is_useful(compared[0], table):
        return None
    best, *others = compared
    equal = [row for row in others if _is_like_the_best(row)]
    cheapest = min((best, *equal), key=lambda row: (row.time, row.label))
    besides = [
        row
        for row in table.ranked
        if row.classes and (_is_like_the_best(row) or (row.value or 0.0) > (best.value or 0.0))
    ]
    basis = None if best.standing is None else best.standing.basis
    known = None if basis == "nothing" else cheapest
    return Choice(table, best, tuple(equal), known, tuple(besides))


def _is_useful(best: Row, table: Table) -> bool:
    full = None if table.reference is None else table.reference.value
    return full is None or (best.value or 0.0) >= USEFUL * full


def _is_like_the_best(row: Row) -> bool:
    """Whether it is not told apart from the best, which what nothing is held against cannot say."""
    return row.standing is not None and row.standing.like_best


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
        classes: why they do not compare with the others of their tables; empty: they do.
        cells: tables in which it has a result.
        rank: its mean rank by figures among the rows of a table, ties at their mean; 1 is the best.
        wins: in percent, the share of the other rows of a table that it is better than beyond chance.
    """

    label: str
    cells: int
    rank: Average
    wins: Average
    classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The label, with a mark where it does not compare."""
        return f"{self.label} {MARK}" if self.classes else self.label


def overall(found: Sequence[Table]) -> list[Overall]:
    """Return how each method does over tables, those with most cells first, then by mean rank.

    Figures of unlike cells are never averaged, for the hardest cell would decide alone: within each table
    methods have ranks, and these are averaged.

    Args:
        found: tables of one task and protocol, of which those that are `counted` count.
    """
    ranks: dict[str, list[float]] = {}
    wins: dict[str, list[float]] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for table in counted(found):
        rows = table.ranked
        values = [-(row.value or 0.0) for row in rows]
        for row, rank in zip(rows, rankdata(values), strict=True):
            beats = 0 if row.standing is None else row.standing.beats
            ranks.setdefault(row.label, []).append(float(rank))
            classes[row.label] = row.classes or classes.get(row.label, ())
            wins.setdefault(row.label, []).append(100 * beats / (len(rows) - 1))
    result = [
        Overall(label, len(own), averaged(own), averaged(wins[label]), classes[label])
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

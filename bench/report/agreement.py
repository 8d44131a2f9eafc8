"""Whether two folders of results put the methods in the same order, though on other models or data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from tabulate import tabulate

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.report.leaderboard import make_leaderboard
from vit_ptq_bench.bench.report.tables import Table, images_of

FEWEST_METHODS = 3
"""Fewer have no order worth a number."""

BEST = 3
"""So many of the first folder's best are looked for in the second."""

DRAWS = 2000
"""Sets of methods drawn with replacement, for the interval of a correlation."""

MEAN_RANK = "mean rank"

EXPLAINED = """\
Spearman's rank correlation over the methods that both have, with its 95 % interval over drawn sets of
methods; the order of several models of a task is by mean rank. In brackets: places in the second."""


@dataclass(frozen=True)
class Agreement:
    """How alike two folders order the methods in one kind of cell.

    Attributes:
        tasks: of the first folder and of the second.
        bits: such as ``W4A4``.
        protocol: ``equal`` or ``authors``.
        source: where calibration images come from; empty: from the training data.
        model: of the second folder; `MEAN_RANK`: all of its task there.
        methods: how many both have.
        correlation: Spearman's, -1 to 1; None: all methods are alike in one of the two.
        low, high: its 95 % interval over drawn sets of methods; None as above.
        best: the first folder's best among these methods, best first, with their places in the second.
    """

    tasks: tuple[str, str]
    bits: str
    protocol: str
    source: str
    model: str
    methods: int
    correlation: float | None
    low: float | None
    high: float | None
    best: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return asdict(self)


Figures = Mapping[str, float]
"""Of each row of one model, its figure in percent."""


class Cell(NamedTuple):
    """What two folders' tables have in common; see `Place`."""

    bits: str
    protocol: str
    source: str


Cells = dict[tuple[str, Cell], dict[str, Figures]]
"""By task and cell: by model, its figures."""


def agreements(first: Path, second: Path) -> list[Agreement]:
    """Return how alike two folders order the methods in each cell that both have.

    A cell is a bit width, a protocol and a source of calibration images.

    Raises:
        BenchError: one of them is no folder, a model has two tables of a cell in one of them (of other data,
            limits or scopes), or no cell has `FEWEST_METHODS` in both.
    """
    before, after = _cells(first), _cells(second)
    found = [
        one
        for (task, cell), models in before.items()
        for (other_task, other_cell), other_models in after.items()
        if other_cell == cell
        for one in _of_cell((task, other_task), cell, models, other_models)
    ]
    if not found:
        raise BenchError(
            f"there is no bit width and protocol at which both {first} and {second} have results of at "
            f"least {FEWEST_METHODS} methods of the same names"
        )
    return found


def _cells(folder: Path) -> Cells:
    cells: Cells = defaultdict(dict)
    for table in make_leaderboard(folder).tables:
        place = table.place
        models = cells[place.task, Cell(place.bits, place.protocol, place.source)]
        if place.model in models:
            raise BenchError(
                f"{folder} has several tables of {place.model} at {place.bits} {place.protocol}; keep those "
                "of one data set, limit and scope in a folder of their own"
            )
        models[place.model] = _figures(table)
    return cells


def _figures(table: Table) -> Figures:
    return {row.label: row.value for row in table.ranked if row.value is not None}


def _of_cell(
    tasks: tuple[str, str],
    cell: Cell,
    models: Mapping[str, Figures],
    other_models: Mapping[str, Figures],
) -> list[Agreement]:
    """Return the agreement with each of the other models, and with their mean rank if there are several."""
    groups = {name: {name: figures} for name, figures in sorted(other_models.items())}
    if len(groups) > 1:
        groups[MEAN_RANK] = dict(other_models)
    found = []
    for name, group in groups.items():
        everything = [*models.values(), *group.values()]
        methods = sorted(set.intersection(*(set(figures) for figures in everything)))
        if len(methods) >= FEWEST_METHODS:
            ranks = [_mean_ranks(list(side.values()), methods) for side in (models, group)]
            found.append(_agreement(tasks, cell, name, methods, *ranks))
    return found


def _mean_ranks(models: Sequence[Figures], methods: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean over models of each method's rank [methods]; 1 is the best, ties at their mean."""
    ranks = [rankdata([-figures[method] for method in methods]) for figures in models]
    mean: NDArray[np.float64] = np.mean(ranks, axis=0)
    return mean


def _agreement(
    tasks: tuple[str, str],
    cell: Cell,
    model: str,
    methods: Sequence[str],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
) -> Agreement:
    places = rankdata(second)
    best = [(methods[i], float(places[i])) for i in np.argsort(first, kind="stable")[:BEST]]
    correlation = low = high = None
    if np.ptp(first) and np.ptp(second):
        correlation = float(spearmanr(first, second).statistic)
        low, high = _interval(first, second)
    return Agreement(tasks, *cell, model, len(methods), correlation, low, high, tuple(best))


def _interval(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of Spearman's correlation over drawn sets of methods."""
    drawn = np.random.default_rng(0).integers(0, len(first), (DRAWS, len(first)))
    ranks = [rankdata(values[drawn], axis=1) for values in (first, second)]
    one, other = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    spread = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    # A draw of one method alone has no order.
    some = spread > 0
    low, high = np.quantile((one * other).sum(axis=1)[some] / spread[some], (0.025, 0.975))
    return float(low), float(high)


def agreement_text(found: Sequence[Agreement]) -> str:
    """Return the agreements as text for people: a table for each bit width, protocol and pair of tasks."""
    cells: dict[tuple[str, ...], list[Agreement]] = defaultdict(list)
    for one in found:
        cells[*one.tasks, one.bits, one.protocol, one.source].append(one)
    blocks = [
        f"{task}, then {other}: {bits} {protocol}{images_of(source)}\n{_table(group)}"
        for (task, other, bits, protocol, source), group in cells.items()
    ]
    return "\n\n".join([*blocks, EXPLAINED])


def _table(group: Sequence[Agreement]) -> str:
    rows = [
        (
            one.model,
            one.methods,
            _two(one.correlation),
            "" if one.low is None else f"{_two(one.low)} to {_two(one.high)}",
            "\n".join(f"{name} ({place:g})" for name, place in one.best),
        )
        for one in group
    ]
    head = ("model", "methods", "rho", "95 %", "best of the first")
    return tabulate(rows, head, disable_numparse=True)


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

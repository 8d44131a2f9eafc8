"""The widths of least summed error within a budget of stored bits, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vit_ptq_bench.methods.errors import MethodError


@dataclass(frozen=True)
class Item:
    """Something that is stored at one of several widths.

    Attributes:
        size: how many values it has.
        errors: bits -> what it loses there (finite, at least 0).
    """

    size: int
    errors: Mapping[int, float]


@dataclass(frozen=True)
class _Front:
    """The choices for the first items that no other choice beats in both, cheapest first.

    Attributes:
        cost: stored bits, int64 [n], rising.
        error: summed, float64 [n], falling.
        width: of the last item, int64 [n].
        before: which choice for the items before it, int64 [n].
    """

    cost: NDArray[np.int64]
    error: NDArray[np.float64]
    width: NDArray[np.int64]
    before: NDArray[np.int64]


def best_widths(items: Sequence[Item], mean_bits: float) -> list[int]:
    """Return the bits of each item with the least sum of errors at a mean of at most ``mean_bits``.

    Dynamic programming over the items: of all choices for the first of them those are kept that no other one
    beats in both cost and error. Exact; fast because layers of a transformer have few different sizes. Of
    choices with equal errors the cheapest is taken.

    Args:
        items: at least one.
        mean_bits: stored bits per value, over all items.

    Raises:
        MethodError: the smallest widths are more than the budget already, or an error is not finite.
    """
    if not all(np.isfinite(list(item.errors.values())).all() for item in items):
        raise MethodError("bits cannot be shared out: an error at some width is not finite")
    total = sum(item.size for item in items)
    least = sum(item.size * min(item.errors) for item in items)
    if least > mean_bits * total:
        raise MethodError(
            f"the smallest widths have {least / total:.2f} bits on average; the budget of {mean_bits:g} "
            "is below that"
        )
    nothing = np.zeros(1, np.int64)
    fronts = [_Front(nothing, np.zeros(1), nothing, nothing)]
    for item in items:
        fronts.append(_extended(fronts[-1], item, mean_bits * total))
    return _traced(fronts)


def _extended(front: _Front, item: Item, budget: float) -> _Front:
    """The front with one more item."""
    widths = np.array(sorted(item.errors), np.int64)
    losses = np.array([item.errors[int(width)] for width in widths])
    cost = (front.cost[:, None] + item.size * widths).ravel()
    error = (front.error[:, None] + losses).ravel()
    before, width = (
        np.ravel(grid) for grid in np.meshgrid(np.arange(len(front.cost)), widths, indexing="ij")
    )
    order = np.lexsort((error, cost))
    order = order[cost[order] <= budget]
    lowest = np.minimum.accumulate(error[order])
    kept = order[np.r_[True, lowest[1:] < lowest[:-1]]]
    return _Front(cost[kept], error[kept], width[kept], before[kept])


def _traced(fronts: Sequence[_Front]) -> list[int]:
    """The widths that lead to the least error of the last front, which is at its end."""
    at, found = len(fronts[-1].cost) - 1, []
    for front in reversed(fronts[1:]):
        found.append(int(front.width[at]))
        at = int(front.before[at])
    return found[::-1]

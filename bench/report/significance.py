"""Paired tests of two results on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.signal import convolve
from scipy.stats import binom, binomtest

from vit_ptq_bench.bench.records.outcomes import Outcomes

SIGNIFICANCE = 0.05
Z = 1.959963984540054
"""Quantile of the normal distribution for a two-sided interval of 95 %."""


@dataclass(frozen=True)
class Paired:
    """How many images two results get right or wrong.

    Attributes:
        both, only_first, only_second, neither: numbers of images.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: Outcomes, second: Outcomes) -> Paired:
        """Count the outcomes of the same images (bool [n] each)."""
        pairs = (first & second, first & ~second, second & ~first, ~first & ~second)
        return cls(*(int(pair.sum()) for pair in pairs))

    @property
    def n(self) -> int:
        """Number of images."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Share of the first less that of the second."""
        return (self.only_first - self.only_second) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `difference`, by the normal approximation for paired shares."""
        apart = (self.only_first + self.only_second) / self.n
        half = Z * sqrt(max(0.0, apart - self.difference**2) / self.n)
        return self.difference - half, self.difference + half

    @property
    def p_value(self) -> float:
        """Exact two-sided p value of McNemar's test."""
        apart = self.only_first + self.only_second
        return 1.0 if apart == 0 else float(binomtest(self.only_first, apart).pvalue)


def pooled(first: Sequence[Outcomes], second: Sequence[Outcomes]) -> float:
    """Exact two-sided p value of McNemar's test over all seeds of two results.

    An image is one unit, however many seeds saw it: its difference is how much more often the first is right
    on it than the second, and under the hypothesis that nothing tells the two apart its sign is a toss. With
    one seed of each that is McNemar's exact test.

    Args:
        first, second: of each seed, whether each image was right, bool [n]; all of the same images. The
            numbers of seeds may differ.
    """
    of_first, of_second = (np.sum(seeds, axis=0, dtype=np.int64) for seeds in (first, second))
    difference = of_first * len(second) - of_second * len(first)
    return sign_flip(difference // np.gcd.reduce(np.append(difference, len(first) * len(second))))


def sign_flip(difference: NDArray[np.int64]) -> float:
    """Exact two-sided p value of a sum, if the sign of each of its integer terms [n] is a toss."""
    found = abs(int(difference.sum()))
    sizes, times = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    chances = np.ones(1)
    for size, count in zip(sizes, times, strict=True):
        # The sum of ``count`` terms of +-size is size (2 k - count), k of them positive.
        tossed = np.zeros(2 * size * count + 1)
        tossed[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = convolve(chances, tossed)
    middle = len(chances) // 2
    return float(min(1.0, 2 * chances[middle + found :].sum() if found else 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down method, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def mcnemar(first: Outcomes, second: Outcomes) -> float:
    """Exact two-sided p value of McNemar's test on two bool arrays [n] of the same images."""
    return Paired.of(first, second).p_value

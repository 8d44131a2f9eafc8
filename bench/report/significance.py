"""Paired tests of two results on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from scipy.stats import binomtest

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


def mcnemar(first: Outcomes, second: Outcomes) -> float:
    """Exact two-sided p value of McNemar's test on two bool arrays [n] of the same images."""
    return Paired.of(first, second).p_value

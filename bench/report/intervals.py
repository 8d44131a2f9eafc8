"""The 95 % interval of a figure that is the mean over several draws of the calibration images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

Matrix = NDArray[np.float64]

Interval = tuple[float, float]
"""Lower and upper end in percent."""

INSIDE = 0.975
"""Quantile of a two-sided interval of 95 %."""


@dataclass(frozen=True)
class Spread:
    """What the mean of k draws varies by, in squared units of the metric.

    The variance of the mean has two parts. *Images*: the metric's variance over image sets, of outcomes
    (or replicates) that are averaged over the draws first: ``var_i(mean_s x[s, i]) / n``. *Draws*: what
    draws differ by beyond what the images explain, ``max(0, var_s(mean_i x[s, i]) - e) / k``, where ``e``
    is the part of the variance between draws that comes from single images alone: the interaction of images
    and draws in a two-way analysis of variance. Half of an interval is the quantile of Student's t times the
    root of the sum, with the degrees of freedom of such a sum after Satterthwaite.

    Attributes:
        images: the first part; n - 1 degrees of freedom.
        draws: the second part; k - 1 degrees of freedom.
        n: images, or image sets.
        k: draws.
    """

    images: float
    draws: float
    n: int
    k: int

    @property
    def variance(self) -> float:
        """Of the mean."""
        return self.images + self.draws

    @property
    def quantile(self) -> float:
        """Of Student's t, for 95 %."""
        parts = self.images**2 / (self.n - 1) + self.draws**2 / (self.k - 1)
        freedom = self.variance**2 / parts if parts > 0 else self.n - 1
        return float(t.ppf(INSIDE, freedom))


def of_outcomes(outcomes: Sequence[NDArray[Any]]) -> Interval | None:
    """Return the interval of a mean of shares; None with fewer than two draws or images.

    A share has Wilson's interval, of as many images as would give its variance: draws that agree on every
    image have that of one draw.

    Args:
        outcomes: of each draw, bool [n].
    """
    found = _matrix(outcomes)
    if found is None:
        return None
    share, n = float(found.mean()), found.shape[1]
    spread = _spread(found, per_image=n)
    binomial = share * (1 - share)
    n_like = binomial / spread.variance if binomial > 0 and spread.variance > 0 else float(n)
    z = spread.quantile
    middle = (share + z**2 / (2 * n_like)) / (1 + z**2 / n_like)
    half = z * sqrt(binomial / n_like + (z / (2 * n_like)) ** 2) / (1 + z**2 / n_like)
    return _within(100 * (middle - half), 100 * (middle + half))


def of_replicates(value: float, replicates: Sequence[NDArray[Any]]) -> Interval | None:
    """Return the interval of a mean of a metric that is no share; None with fewer than two draws or sets.

    Args:
        value: the mean.
        replicates: of each draw the metric on the same image sets, [R].
    """
    found = _matrix(replicates)
    if found is None:
        return None
    spread = _spread(found, per_image=1)
    half = spread.quantile * sqrt(spread.variance)
    return _within(value - half, value + half)


def of_errors(values: Sequence[float], errors: Sequence[float | None]) -> Interval | None:
    """Return the interval of a mean of which standard errors alone are known; None where one is not.

    Nothing tells which part of the differences between draws comes from the images: all of it counts, which
    makes the interval too wide rather than too narrow.

    Args:
        values: of each draw.
        errors: their standard errors over images.
    """
    known = [error for error in errors if error is not None]
    if len(values) < 2 or len(known) < len(values):
        return None
    k = len(values)
    images, draws = float(np.mean(np.square(known))), float(np.var(values, ddof=1)) / k
    spread = Spread(images, draws, MANY, k)
    half = spread.quantile * sqrt(spread.variance)
    middle = float(np.mean(values))
    return _within(middle - half, middle + half)


MANY = 10_000
"""Images that a standard error counts as, where their number is not known: its t is the normal one."""


def _matrix(arrays: Sequence[NDArray[Any]]) -> Matrix | None:
    """Draws by images; None where they do not fit or there are too few."""
    if len(arrays) < 2 or len({len(one) for one in arrays}) != 1 or len(arrays[0]) < 2:
        return None
    return np.asarray(arrays, dtype=np.float64)


def _spread(found: Matrix, per_image: int) -> Spread:
    """The two parts, of entries [k, n]; ``per_image``: entries that the metric is a mean of (1: itself)."""
    k, n = found.shape
    images, draws = found.mean(axis=0), found.mean(axis=1)
    alone = found - images - draws[:, None] + found.mean()
    interaction = float((alone**2).sum()) / ((k - 1) * (n - 1)) / per_image
    beyond = max(0.0, float(draws.var(ddof=1)) - interaction)
    variance = float(images.var(ddof=1 if per_image == 1 else 0))
    return Spread(variance / per_image, beyond / k, n, k)


def _within(low: float, high: float) -> Interval:
    """The ends as far as they lie in what a metric can be, with digits that every machine agrees on."""
    return max(0.0, round(low, 4)), min(100.0, round(high, 4))

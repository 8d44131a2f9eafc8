"""The loss of a row against full precision on the same images, with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy.stats import t

from vit_ptq_bench.bench.report.significance import Z
from vit_ptq_bench.bench.report.standings import Seen


@dataclass(frozen=True)
class Drop:
    """Percentage points of the first metric that a row has less than full precision.

    Attributes:
        points: of the means over seeds; negative where quantization gained.
        low, high: 95 % interval over images; None where nothing per image is known of one of the two.
    """

    points: float
    low: float | None = None
    high: float | None = None

    def within(self, allowed: float) -> bool | None:
        """Whether the whole interval lies within ``allowed`` points; None: there is no interval."""
        return None if self.high is None else self.high <= allowed


def drop_of(reference: Seen, row: Seen) -> Drop:
    """Return what ``row`` loses against ``reference``.

    An image is one unit, however many seeds saw it. With one seed of each the interval is that of
    `significance.Paired`; of a metric that is no share it comes from the paired bootstrap over images, as
    the tests of `standings` do.
    """
    points = reference.value - row.value
    half = _half_of_outcomes(reference, row)
    if half is None:
        half = _half_of_replicates(reference, row)
    return Drop(points) if half is None else Drop(points, points - half, points + half)


def _half_of_outcomes(reference: Seen, row: Seen) -> float | None:
    arrays = [*(reference.outcomes or ()), *(row.outcomes or ())]
    if not reference.outcomes or not row.outcomes or len({len(array) for array in arrays}) != 1:
        return None
    apart = np.mean(reference.outcomes, axis=0) - np.mean(row.outcomes, axis=0)
    return 100 * Z * float(apart.std()) / sqrt(len(apart))


def _half_of_replicates(reference: Seen, row: Seen) -> float | None:
    arrays = [*(reference.replicates or ()), *(row.replicates or ())]
    sizes = {len(array) for array in arrays}
    if not reference.replicates or not row.replicates or len(sizes) != 1 or sizes <= {0, 1}:
        return None
    apart = np.mean(reference.replicates, axis=0) - np.mean(row.replicates, axis=0)
    return float(t.ppf(0.975, sizes.pop() - 1) * apart.astype(np.float64).std(ddof=1))

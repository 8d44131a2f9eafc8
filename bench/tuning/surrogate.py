"""Which configuration to try next: ridge regression on one-hot values and their pairs, with a bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RIDGE = 0.1
"""Weight of the penalty, where the features of a configuration have norm 1 and scores variance 1."""

RESAMPLES = 64
"""Bootstrap samples of the trials."""

OPTIMISM = 0.5
"""Standard deviations that are added to the mean: what is little known is worth a look."""

Codes = NDArray[np.int64]
Scores = NDArray[np.float64]


def similarity(first: Codes, second: Codes) -> NDArray[np.float64]:
    """Return the inner products of the features of two sets of configurations, of norm 1.

    The features are a 1 for each value that a dimension has and for each pair of values that two dimensions
    have. Where m of d dimensions agree, the inner product is m + m (m - 1) / 2, which needs no features.

    Args:
        first, second: [n, d] and [k, d], the number of each dimension's value.

    Returns:
        [n, k], 1 for equal configurations.
    """
    same = (first[:, None, :] == second[None, :, :]).sum(axis=2).astype(np.float64)
    dimensions = first.shape[1]
    result: NDArray[np.float64] = same * (same + 1) / (dimensions * (dimensions + 1))
    return result


def predicted(tried: Codes, scores: Scores, candidates: Codes) -> Scores:
    """Return the ridge regression's scores of ``candidates`` [k, d], from trials [n, d] with scores [n]."""
    mean = scores.mean()
    gram = similarity(tried, tried) + RIDGE * np.eye(len(tried))
    weights = np.linalg.solve(gram, scores - mean)
    result: Scores = similarity(candidates, tried) @ weights + mean
    return result


def expected_best(
    tried: Codes, scores: Scores, candidates: Codes, generator: np.random.Generator
) -> int:
    """Return which candidate has the largest mean plus `OPTIMISM` standard deviations over the bootstrap.

    Args:
        tried: [n, d], configurations of trials, n at least 1.
        scores: [n], the larger the better, finite.
        candidates: [k, d].
        generator: draws the resamples.

    Returns:
        Index into ``candidates``; of equal ones the first.
    """
    spread = scores.std()
    scaled = (scores - scores.mean()) / (spread if spread > 0 else 1.0)
    draws = generator.integers(len(scores), size=(RESAMPLES, len(scores)))
    found = np.stack([predicted(tried[rows], scaled[rows], candidates) for rows in draws])
    return int((found.mean(axis=0) + OPTIMISM * found.std(axis=0)).argmax())

"""Which images of a data set are evaluated, and which are drawn for calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vit_ptq_bench.tasks.errors import TaskError


def subset(n: int, limit: int | None) -> NDArray[np.int64]:
    """Return the indices to evaluate: all, or ``limit`` drawn with a fixed seed, in order."""
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).permutation(n)[:limit])


def drawn(n: int, wanted: int, seed: int, where: object) -> NDArray[np.int64]:
    """Return ``wanted`` of ``n`` indices, drawn by seed without replacement, in the order drawn.

    Args:
        n: number of images there are.
        wanted: number of images to draw.
        seed: of the draw.
        where: the data set's name, for the error.

    Raises:
        TaskError: there are fewer.
    """
    if wanted > n:
        fewer = f"; ask for fewer: --calibration-images {n}" if n else ""
        raise TaskError(f"{where} has {n} images to draw, the run asks for {wanted}{fewer}")
    return np.random.default_rng(seed).permutation(n)[:wanted]

"""Paired tests of two results."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import binomtest

SIGNIFICANCE = 0.05


def mcnemar(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Exact two-sided p value of McNemar's test on two bool arrays [n] of the same images."""
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)

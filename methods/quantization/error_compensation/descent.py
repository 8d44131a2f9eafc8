"""Codes and row scales improved one by one, each for what the others leave: the error never rises.

Notation: W [R, K] the weight that is wanted, V what its codes stand for, H [K, K] the second moment of the
layer's inputs; the error of row r is ``(W_r - V_r) H (W_r - V_r)'``.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Levels(Protocol):
    """What codes stand for: `columnwise.RowGrid`, or any table of levels."""

    def at(self, columns: slice | Tensor) -> Levels:
        """Return the levels of some columns."""

    def codes(self, weight: Tensor) -> Tensor:
        """Return the nearest codes of ``weight``, float64 [R, k], as whole float64 numbers."""

    def values(self, codes: Tensor) -> Tensor:
        """Return what ``codes`` stand for, float64 [R, k]."""

    def nearest(self, column: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Return whole codes and values nearest to one column, float64 [R], the one at ``place``."""


def descend(weight: Tensor, codes: Tensor, levels: Levels, second: Tensor, sweeps: int) -> Tensor:
    """Return codes after ``sweeps`` of coordinate descent, columns of largest second moment first.

    With all other columns as they are the error is a parabola in one entry, and the level nearest to its
    minimum, ``V_j + (W - V) H_j / H_jj``, is the best of all levels.

    Args:
        weight: W, [R, K].
        codes: to begin with, [R, K].
        levels: of all columns.
        second: H, [K, K]; a column whose input is always zero keeps its codes.
        sweeps: at most; it ends where a sweep changes no code.

    Returns:
        Codes as int32, [R, K].
    """
    second, now = second.double(), codes.double()
    values = levels.values(now)
    pull = (weight.double() - values) @ second
    order = second.diagonal().argsort(descending=True, stable=True)
    columns = [int(j) for j in order if second[j, j] > 0]
    for _ in range(sweeps):
        before = now.clone()
        for j in columns:
            one, own = slice(j, j + 1), levels.at(slice(j, j + 1))
            now[:, one] = own.codes(values[:, one] + pull[:, one] / second[j, j])
            moved = own.values(now[:, one]) - values[:, one]
            values[:, one] += moved
            pull -= moved * second[j]
        if torch.equal(before, now):
            break
    return now.to(torch.int32)


def scale_factors(weight: Tensor, values: Tensor, second: Tensor) -> Tensor:
    """Return by what each row's scale is best multiplied while its codes stay: ``V H W' / V H V'``.

    Args:
        weight: W, [R, K].
        values: V, [R, K]; its rows are proportional to their scales.
        second: H, [K, K].

    Returns:
        float64 [R], > 0: 1 where the best factor is not (a row of zeros, or one that points away).
    """
    pulled = values.double() @ second.double()
    along, own = (pulled * weight.double()).sum(dim=1), (pulled * values.double()).sum(dim=1)
    return torch.where((along > 0) & (own > 0), along / own.clamp_min(1e-300), 1.0)

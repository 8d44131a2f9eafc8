"""Solves with damped second moments, which all compensation in closed form comes to."""

from __future__ import annotations

import torch
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError


def positive_factor(matrix: Tensor, parameter: str, whose: str = "a layer's input") -> Tensor:
    """Return the lower Cholesky factor of a damped second moment, of the matrix's type and shape [K, K].

    Args:
        matrix: symmetric, [K, K].
        parameter: the setting that damps it.
        whose: what it is the second moment of.

    Raises:
        MethodError: the matrix is not positive definite.
    """
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        raise MethodError(
            f"the second moment of {whose} is not positive definite; use a larger {parameter} or more "
            "calibration images",
            parameter=parameter,
        )
    factor: Tensor = lower
    return factor


def ridge_solution(second: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Return ``[(H + rho mean(diag H) I)^-1 C]'``, float64 [O, K].

    Args:
        second: H, [K, K].
        cross: C, [K, O].
        ridge: rho.
    """
    damped = second.clone()
    damped.diagonal().add_(max(ridge, 1e-6) * second.diagonal().mean() + 1e-30)
    solution: Tensor = torch.linalg.solve(damped, cross)
    return solution.T

"""Ridge regression of errors on inputs, from second moments, judged on images that it was not fitted to."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.error_compensation.solving import positive_factor

HALVES = 2
"""Of the images: what one half gives is judged on the other."""

ROWS = 4096
"""Rows whose products are added up in float32 at most; the sums of these are float64."""


@dataclass(frozen=True)
class Linear:
    """A linear map of errors: weight [R, K] and bias [R], float64."""

    weight: Tensor
    bias: Tensor


class Regression:
    """Finds ``y ~ W x + b`` for rows x [K] and y [R] of many images.

    ``W = C_yx (C_xx + lambda I)^-1`` with centred second moments, ``b = mean(y) - W mean(x)``; lambda is
    ``ridge`` times the mean of C_xx's diagonal, so it means the same for any number and size of inputs.
    """

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        zeros = partial(torch.zeros, dtype=torch.float64, device=device)
        self._second = zeros(HALVES, inputs + 1, inputs + 1)
        self._cross = zeros(HALVES, inputs + 1, outputs)
        self._square = zeros(HALVES)
        self._images = 0

    def add(self, inputs: Tensor, errors: Tensor, weights: Tensor | None = None) -> None:
        """Take the rows of some images.

        Args:
            inputs: x, [images, rows, K].
            errors: y, [images, rows, R].
            weights: how much each row's squared error counts, [images, rows]; None: all the same.
        """
        if weights is None:
            weights = inputs.new_ones(inputs.shape[:2])
        for x, y, weight in zip(inputs, errors, weights.sqrt()[..., None], strict=True):
            half = self._images % HALVES
            rows, wanted = torch.cat([x * weight, weight], dim=1), y * weight
            for one, other in zip(torch.split(rows, ROWS), torch.split(wanted, ROWS), strict=True):
                self._second[half] += (one.T @ one).double()
                self._cross[half] += (one.T @ other).double()
            self._square[half] += wanted.square().sum(dtype=torch.float64)
            self._images += 1

    def solve(self, ridge: float) -> Linear | None:
        """Return what all images give, or None where it does not earn its place.

        That is judged by two-fold cross-validation over images: R^2 is one minus the squared error that is
        left on the half that was not fitted, over the error without a correction.

        Raises:
            MethodError: the inputs' second moment is not positive definite with this ridge.
        """
        if not self.share_removed(ridge) > 0:
            return None
        return _fit(self._second.sum(0), self._cross.sum(0), ridge)

    def share_removed(self, ridge: float) -> float:
        """Return R^2; 0 where there is no error, or one half of the images is empty."""
        before = float(self._square.sum())
        if before == 0 or self._images < HALVES:
            return 0.0
        left = sum(self._left(1 - half, half, ridge) for half in range(HALVES))
        return 1 - left / before

    def _left(self, fitted: int, judged: int, ridge: float) -> float:
        """Squared error on one half behind what the other half gives."""
        found = _fit(self._second[fitted], self._cross[fitted], ridge)
        joined = torch.cat([found.weight, found.bias[:, None]], dim=1).T
        second, cross = self._second[judged], self._cross[judged]
        removed = (joined * (2 * cross - second @ joined)).sum()
        return float(self._square[judged] - removed)


def _fit(second: Tensor, cross: Tensor, ridge: float) -> Linear:
    count = second[-1, -1]
    mean_x, mean_y = second[-1, :-1] / count, cross[-1] / count
    covariance = second[:-1, :-1] - count * torch.outer(mean_x, mean_x)
    mixed = cross[:-1] - count * torch.outer(mean_x, mean_y)
    covariance.diagonal().add_(ridge * covariance.diagonal().mean())
    lower = positive_factor(covariance, "ridge", "the inputs of a correction")
    weight = torch.cholesky_solve(mixed, lower).T
    return Linear(weight, mean_y - weight @ mean_x)

"""The best state of a unit by its loss on held-out images."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LOOKS = 6
"""How often a unit is judged in the course of its training, at the end for the last time."""


class Judge:
    """Keeps the state of the trained parameters with the smallest loss, that of the start included."""

    def __init__(self, parameters: Sequence[nn.Parameter], loss: Callable[[], float]) -> None:
        self._parameters, self._loss = list(parameters), loss
        self.start = self.best = loss()
        self._kept = self._copy()

    def look(self, done: int, iterations: int) -> None:
        """Take the loss, `LOOKS` times in ``iterations``, after ``done`` of them."""
        if done % max(1, math.ceil(iterations / LOOKS)) and done != iterations:
            return
        value = self._loss()
        if value < self.best:
            self.best, self._kept = value, self._copy()

    @torch.no_grad()
    def settle(self) -> bool:
        """Put the best state back; return whether it is better than the start."""
        for parameter, kept in zip(self._parameters, self._kept, strict=True):
            parameter.copy_(kept)
        return self.best < self.start

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]

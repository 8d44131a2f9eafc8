"""Held-out images: the best state of a unit, and whether the whole model is better than its start."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.structure import Output

LOOKS = 6
"""How often a unit is judged in the course of its training, at the end for the last time."""

MARGIN = 1.0
"""Standard errors by which a reconstructed model must be nearer to full precision than its start: the rule of
one standard error (Breiman et al., 1984), which takes the simpler of two models unless the other is better
by more than that."""


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


def distances(target: Output, output: Output) -> Tensor:
    """Return how far the prediction of each image is off, [n].

    Args:
        target: of full precision, logits [n, classes] or a detector's feature maps [n, ...].
        output: the same of another model.

    Returns:
        KL of the logits' softmaxes, or the relative squared error of the maps, mean over maps.
    """
    if isinstance(target, Tensor) and isinstance(output, Tensor):
        true, mine = (F.log_softmax(each.flatten(1), dim=1) for each in (target, output))
        return (true.exp() * (true - mine)).sum(dim=1)
    parts = [
        (mine - true).square().flatten(1).sum(dim=1)
        / true.square().flatten(1).sum(dim=1).clamp_min(1e-30)
        for true, mine in zip(target, output, strict=True)
    ]
    return torch.stack(parts).mean(dim=0)


def clearly_less(new: Tensor, old: Tensor) -> bool:
    """Return whether ``new`` is below ``old`` by `MARGIN` standard errors, image by image; both [n].

    A single image has no standard error, and counts as it is.
    """
    gain = old.double() - new.double()
    error = gain.std() / math.sqrt(len(gain)) if len(gain) > 1 else torch.zeros(())
    return bool(gain.mean() > MARGIN * error)

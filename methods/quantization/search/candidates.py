"""The candidate settings of one quantizer on a grid, and the search among them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.twin import TwinSoftmaxQuantizer

SearchMode = Literal["coarse-to-fine", "exhaustive"]

COARSE_STRIDE = 8

NEAR_STRIDE = 2


@dataclass(frozen=True)
class Grid:
    """A grid of factors on the start value: ``alpha + i (beta - alpha) / steps``, i < steps.

    Attributes:
        alpha: the smallest factor.
        beta: where it ends; one of the factors only where they are logarithmic.
        steps: how many.
        logarithmic: ``beta (alpha / beta)^(i / (steps - 1))`` instead, from alpha up to beta: each factor is
            the same multiple of the one before.
    """

    alpha: float
    beta: float
    steps: int = 100
    logarithmic: bool = False

    def factors(self) -> Tensor:
        """Return the factors, [steps]."""
        if self.logarithmic:
            below = torch.arange(self.steps).flip(0) / max(1, self.steps - 1)
            return self.beta * (self.alpha / self.beta) ** below
        return self.alpha + torch.arange(self.steps) * ((self.beta - self.alpha) / self.steps)


class Candidates:
    """The candidate settings of one quantizer, numbered 0 .. count - 1, chosen per group.

    For the quantizer after softmax they are its splits, for every other one factors on its range.
    """

    def __init__(self, quantizer: Quantizer, x: Tensor, grid: Grid) -> None:
        self.quantizer = quantizer
        self.low, self.high = torch.aminmax(grouped(x, quantizer), dim=1)
        self.factors = grid.factors().to(x.device)
        self.by_split = isinstance(quantizer, TwinSoftmaxQuantizer)
        self.count = TwinSoftmaxQuantizer.SPLITS if self.by_split else grid.steps
        self.groups = len(self.low)
        self.chosen: Tensor | None = None
        quantizer.set_range(self.low, self.high)

    def apply(self, index: Tensor) -> None:
        """Set the quantizer to candidate ``index`` ([groups], int64)."""
        if isinstance(self.quantizer, TwinSoftmaxQuantizer):
            self.quantizer.set_split(index)
        else:
            factor = self.factors[index]
            self.quantizer.set_range(self.low * factor, self.high * factor)

    def choose(self, index: Tensor) -> bool:
        """Keep candidate ``index``; return whether that differs from the choice before."""
        changed = self.chosen is None or not torch.equal(self.chosen, index)
        self.chosen = index
        self.apply(index)
        return changed


def best_index(
    score: Callable[[Tensor], Tensor],
    count: int,
    groups: int,
    mode: SearchMode,
    device: torch.device,
    start: Tensor | None = None,
) -> Tensor:
    """Return, per group, the candidate of highest score ([groups], int64).

    ``exhaustive`` tries all. ``coarse-to-fine`` tries every 8th candidate, then the 14 around the best:
    scores are nearly unimodal in the scale. Where an earlier search has chosen ``start`` ([groups]), it
    tries that, those 2 away, and then the 2 beside the best of them.
    """
    if mode == "exhaustive":
        return _best_of(score, _all(range(count), groups, device))[0]
    if start is not None:
        stride, coarse = NEAR_STRIDE, _around(start, (-NEAR_STRIDE, 0, NEAR_STRIDE), count)
    else:
        stride = 1 if count <= 2 * COARSE_STRIDE else COARSE_STRIDE
        coarse = _all(range(0, count, stride), groups, device)
    index, value = _best_of(score, coarse)
    fine = _around(index, [step for step in range(1 - stride, stride) if step], count)
    if not fine:
        return index
    fine_index, fine_value = _best_of(score, fine)
    return torch.where(fine_value > value, fine_index, index)


def _all(indices: Iterable[int], groups: int, device: torch.device) -> list[Tensor]:
    return [torch.full((groups,), i, device=device) for i in indices]


def _around(index: Tensor, steps: Iterable[int], count: int) -> list[Tensor]:
    return [(index + step).clamp(0, count - 1) for step in steps]


def _best_of(score: Callable[[Tensor], Tensor], indices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    scores = torch.stack([score(index) for index in indices])
    value, position = scores.max(dim=0)
    return torch.stack(list(indices)).gather(0, position[None]).squeeze(0), value

"""Weights on a table of levels, trained: AdaRound between two of them, or straight through the nearest."""

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.quantizers.arithmetic import spread
from vit_ptq_bench.methods.quantization.quantizers.levels import LevelQuantizer
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    TrainableWeight,
    logit_of,
    rectified,
    undecided,
)


class TrainableLevelRounding(TrainableWeight):
    """``s (l_k + h(alpha) (l_k+1 - l_k))``, l_k <= w / s <= l_k+1 (Nagel et al. 2020, between any levels).

    ``h = clip(1.2 sigmoid(alpha) - 0.1, 0, 1)`` starts where the weight lies between its two levels. Beyond
    the first or the last level there is no choice: the weight stays on it and has no part in the penalty.
    On a uniform table this is `TrainableRounding` to the bit.
    """

    inner: LevelQuantizer

    def __init__(self, inner: LevelQuantizer, weight: Tensor) -> None:
        super().__init__(inner)
        self._scale = spread(inner.scale, weight, inner.axis)
        ratio = weight.detach() / self._scale
        self._below, self._above = neighbours(ratio, inner)
        lower, self._upper = (self._values(side) for side in (self._below, self._above))
        self._lower, self._gap = lower, self._upper - lower
        inside = self._gap > 0
        fraction = torch.where(inside, (ratio - lower) / self._gap.masked_fill(~inside, 1), 0.0)
        self.alpha = nn.Parameter(logit_of(fraction))

    def _values(self, places: Tensor) -> Tensor:
        """The levels at some places, without the scale."""
        return self.inner.levels_at(places)

    def fake_quantize(self, x: Tensor) -> Tensor:
        if self.settled:
            return torch.where(self.alpha >= 0, self._upper, self._lower) * self._scale
        return (self._lower + rectified(self.alpha) * self._gap) * self._scale

    def codes(self, weight: Tensor) -> Tensor:
        return torch.where(self.alpha >= 0, self._above, self._below).to(torch.int32)

    def regulariser(self, exponent: float) -> Tensor:
        return undecided(rectified(self.alpha), exponent)


class TrainableLevelOffset(TrainableWeight):
    """The weight itself is trained through the nearest level of any table (straight-through; I&S-ViT).

    On a uniform table this is `TrainableOffset` for weights within the range; a weight beyond it keeps its
    gradient here.

    Attributes:
        trained: the weight.
    """

    inner: LevelQuantizer

    def __init__(self, inner: LevelQuantizer, weight: Tensor) -> None:
        super().__init__(inner)
        self.trained = nn.Parameter(weight.detach().clone())

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self.inner.fake_quantize(self.trained)

    def codes(self, weight: Tensor) -> Tensor:
        return self.inner.quantize(self.trained.detach())


def neighbours(ratio: Tensor, quantizer: LevelQuantizer) -> tuple[Tensor, Tensor]:
    """Return the places of the levels around ``ratio``, weights over their scales (int64, its shape).

    Both are the first or the last place beyond the table, and one place where there is no other level above.
    """
    below = quantizer.place_below(ratio)
    last = quantizer.code_range[1]
    return below.clamp(min=0), (below + 1).clamp(max=last)

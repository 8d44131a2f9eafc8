"""Weights on three uniform pieces: a middle one, fine, and two tails, coarse."""

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY
from vit_ptq_bench.methods.quantization.quantizers.levels import LevelQuantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form

USUAL_SPLIT = 0.35
"""Where `PiecewiseQuantizer.set_range` alone chooses: about what the squared error chooses on ViT-Tiny."""


@register_form("piecewise")
class PiecewiseQuantizer(LevelQuantizer):
    """``[-p, p]`` in 2^b equal cells, ``(p, m]`` and ``[-m, -p)`` in 2^(b-1) each; levels are their centres.

    Buffers ``scale`` (m) and ``split`` (p / m, between 0 and 1), float32 [groups]. Source: PWLQ (Fang et al.,
    ECCV 2020), whose b is that of the middle piece: 2^b + 2 2^(b-1) codes need b + 1 bits, and those are the
    bits of the spec. Deviation: the paper's levels are the ends of each piece too, so that ``+-p`` is there
    twice; with the centres of cells the squared error is a third less at 4 bits.
    """

    split: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.register_buffer("split", torch.empty(0))

    def table(self) -> Tensor:
        return piecewise_levels(self.split, self.spec.bits).float()

    def set_pieces(self, scale: Tensor, split: Tensor) -> None:
        """Set m (> 0) and p / m (between 0 and 1), both [groups].

        Raises:
            MethodError: a value is not finite.
        """
        self._require_finite(scale, split)
        self.scale = scale.detach().float().reshape(-1).clamp_min(TINY).contiguous()
        self.split = split.detach().float().reshape(-1).contiguous()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set m to the largest magnitude of [low, high] (shape [groups]), p / m to `USUAL_SPLIT`.

        A search does better.
        """
        self._require_finite(low, high)
        reach = torch.maximum(low.abs(), high.abs())
        self.set_pieces(reach, torch.full_like(reach, USUAL_SPLIT))

    def table_problem(self) -> str | None:
        """One place of the border for each scale, between 0 and 1."""
        split = self.split
        if split.shape != self.scale.shape or split.dtype != torch.float32:
            return f"scales {tuple(self.scale.shape)} with splits {tuple(split.shape)} of {split.dtype}"
        if not bool(((split > 0) & (split < 1)).all()):
            return "splits that are not between 0 and 1"
        return None


def piecewise_levels(split: Tensor, bits: int) -> Tensor:
    """Return the levels of three pieces in units of the largest magnitude, ascending, [groups, 2^bits].

    Args:
        split: p / m, float, [groups].
        bits: stored; half of the levels lie in the middle piece, a quarter in each tail.
    """
    positive = positive_levels(split, bits)
    return torch.cat([-positive.flip(1), positive], dim=1)


def positive_levels(split: Tensor, bits: int) -> Tensor:
    """Return the upper half of `piecewise_levels`, the magnitudes, [groups, 2^(bits - 1)]."""
    count = 2 ** (bits - 2)
    places = 2 * torch.arange(count, dtype=split.dtype, device=split.device) + 1
    middle = split[:, None] * places / (2 * count)
    tail = split[:, None] + (1 - split[:, None]) * places / (2 * count)
    return torch.cat([middle, tail], dim=1)

"""Uniform quantizers whose scales integer hardware applies by a shift, or by a multiplication and a shift.

Whatever gives such a quantizer its scale, it is rounded: that of a range so that the range stays covered,
any other one (a fit of rows, a trained step) to the nearest. So any range rule and any method work on these
grids.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

MANTISSA_BITS = 8
"""Bits of the whole number m in a fixed-point scale ``m 2^-s``: 128 to 255."""


class RoundedScaleQuantizer(UniformQuantizer):
    """Base: a uniform quantizer that rounds its scales, and moves its zero points accordingly.

    The value of the range that is nearest to zero keeps its code. So a range that holds zero keeps its zero
    point, and widens or narrows around zero with the scale; one that excludes zero keeps the end nearest to
    it.
    """

    words: ClassVar[str]
    """The scales that it has, for messages."""

    def grid_over(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the grid of `covering` scales; see `UniformQuantizer.grid_over`."""
        scale, zero_point = super().grid_over(low, high)
        allowed = self.covering(scale.float())
        return allowed, self.moved(zero_point, scale / allowed)

    def covering(self, scale: Tensor) -> Tensor:
        """Return the scale for a range that takes ``scale`` (> 0, any shape); the nearest one here."""
        return self.rounded(scale)

    @abstractmethod
    def rounded(self, scale: Tensor) -> Tensor:
        """Return the scales that this form has in the place of ``scale`` (positive, finite; same shape)."""

    def representable(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """Return rounded scales, and zero points for them; see `UniformQuantizer.representable`."""
        allowed = self.rounded(scale.float().clamp_min(TINY))
        return allowed, self.moved(zero_point, scale.float() / allowed)

    def moved(self, zero_point: Tensor, ratio: Tensor) -> Tensor:
        """Return the zero points of grids with scales that are ``ratio`` times smaller (same shape)."""
        # Steps from zero to the value of the range nearest to it: 0 where the range holds zero.
        distance = zero_point.clamp(*self.code_range) - zero_point
        moved = torch.round(zero_point + distance - distance * ratio)
        return torch.where(distance == 0, zero_point.to(moved.dtype), moved)

    def problem(self) -> str | None:
        """Also of scales that the form does not have."""
        found = super().problem()
        if found or self.spec.is_float or self.spec.dynamic or not self.scale.numel():
            return found
        if not torch.equal(self.rounded(self.scale), self.scale):
            return f"scales that are no {self.words}"
        return None


@register_form("uniform-power-of-two")
class PowerOfTwoQuantizer(RoundedScaleQuantizer):
    """Scales are powers of two: a product is rescaled by a shift.

    A range gets the next power up: at many bits a range that is cut costs far more than a wider step. The
    rules that shrink ranges have one power after the other among their candidates then.
    """

    words = "powers of two"

    def rounded(self, scale: Tensor) -> Tensor:
        """Return the power of two that is nearest by ratio; see `RoundedScaleQuantizer.rounded`."""
        # The fraction is in [0.5, 1) and the quotient, a power of two, exact.
        fraction: Tensor = torch.frexp(scale).mantissa
        return scale / fraction * torch.where(fraction < 0.5**0.5, 0.5, 1.0)

    def covering(self, scale: Tensor) -> Tensor:
        """Return the smallest power of two that is not smaller; arguments as of `rounded`."""
        below = self.below(scale)
        return torch.where(below < scale, 2 * below, below)

    def below(self, scale: Tensor) -> Tensor:
        """Return the largest power of two that is not larger; arguments as of `rounded`."""
        fraction: Tensor = torch.frexp(scale).mantissa
        return scale / fraction * 0.5


@register_form("uniform-fixed-point")
class FixedPointQuantizer(RoundedScaleQuantizer):
    """Scales are ``m 2^-s``, m a whole number of eight bits: rescaling is a multiplication and a shift.

    m is 128 to 255, so that a scale is off by 1/256 of itself at most.
    """

    words = f"fixed-point numbers with a mantissa of {MANTISSA_BITS} bits"

    def rounded(self, scale: Tensor) -> Tensor:
        """Return the nearest ``m 2^-s``; see `RoundedScaleQuantizer.rounded`."""
        # The fraction is in [0.5, 1) and the quotient exact; m = 256 is 128, one exponent up.
        fraction: Tensor = torch.frexp(scale).mantissa
        allowed: Tensor = (fraction * 2**MANTISSA_BITS).round() / 2**MANTISSA_BITS
        return scale / fraction * allowed

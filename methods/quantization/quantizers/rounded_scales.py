"""Uniform quantizers whose scales integer hardware applies by a shift, or by a multiplication and a shift.

Whatever gives such a quantizer its scale (a range, a search, a fit of rows), `set_parameters` rounds it, so
that any range rule and any method work on these grids.
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

    @abstractmethod
    def rounded(self, scale: Tensor) -> Tensor:
        """Return the scales that this form has in the place of ``scale`` (positive, finite; same shape)."""

    def representable(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """Return rounded scales, and zero points for them; see `UniformQuantizer.representable`."""
        scale = scale.float()
        allowed = self.rounded(scale.clamp_min(TINY))
        # Steps from zero to the value of the range nearest to it: 0 where the range holds zero.
        distance = zero_point.clamp(*self.code_range) - zero_point
        moved = torch.round(zero_point + distance - distance * (scale / allowed))
        return allowed, torch.where(distance == 0, zero_point.to(moved.dtype), moved)

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
    """Scales are powers of two, the nearest by ratio: a product is rescaled by a shift."""

    words = "powers of two"

    def rounded(self, scale: Tensor) -> Tensor:
        """Return the power of two that is nearest by ratio; see `RoundedScaleQuantizer.rounded`."""
        # The fraction is in [0.5, 1) and the quotient, a power of two, exact.
        fraction: Tensor = torch.frexp(scale).mantissa
        return scale / fraction * torch.where(fraction < 0.5**0.5, 0.5, 1.0)


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

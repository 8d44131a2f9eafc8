"""Quantizers whose parameters are learned: rounding, weights, activation steps.

Each stands in the place of a calibrated quantizer while its unit is reconstructed, and hands back what
it has learned at the end.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from methods.quantization.quantizers import TINY, Quantizer, UniformQuantizer

ZETA, GAMMA = 1.1, -0.1
"""Stretch of the rectified sigmoid (AdaRound, equation 23)."""

Learn = Literal["rounding", "weights"]


def round_through(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient passes as if nothing had happened."""
    return x + (x.round() - x).detach()


class LearnedWeight(Quantizer):
    """Base of the two ways to learn a weight's codes; the scales stay as calibrated.

    Attributes:
        inner: the calibrated quantizer.
    """

    def __init__(self, inner: UniformQuantizer, weight: Tensor) -> None:
        super().__init__(inner.spec, inner.site, inner.axis)
        self.inner = inner
        scale, zero_point = inner._shaped(weight)
        self._step, self._zero = scale, zero_point.float()
        self._low, self._high = inner.code_range
        self.active = True

    @property
    def initialised(self) -> bool:
        return True

    def codes(self, weight: Tensor) -> Tensor:
        """Return the integer codes that were learned (int32, shape of ``weight``)."""
        raise AssertionError("defined by each form")

    def regulariser(self, exponent: float) -> Tensor:
        """Return the penalty on undecided roundings; 0 where there are none."""
        return self._step.new_zeros(())

    def _values(self, codes: Tensor) -> Tensor:
        return (codes.clamp(self._low, self._high) - self._zero) * self._step


class LearnedRounding(LearnedWeight):
    """AdaRound: each weight goes up or down, ``floor(w / s) + h(alpha)`` (Nagel et al. 2020).

    ``h = clip(1.2 sigmoid(alpha) - 0.1, 0, 1)`` starts at the weight's own fraction, so that the soft
    weight is the full-precision one at first (inside the range of the codes).
    """

    def __init__(self, inner: UniformQuantizer, weight: Tensor) -> None:
        super().__init__(inner, weight)
        quotient = weight.detach() / self._step
        self._floor = quotient.floor() + self._zero
        fraction = quotient - quotient.floor()
        self.alpha = nn.Parameter(-torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1))

    def _up(self) -> Tensor:
        return (self.alpha.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self._values(self._floor + self._up())

    def codes(self, weight: Tensor) -> Tensor:
        codes = self._floor + (self.alpha >= 0)
        return codes.clamp(self._low, self._high).to(torch.int32)

    def regulariser(self, exponent: float) -> Tensor:
        return (1 - (2 * self._up() - 1).abs().pow(exponent)).sum()


class LearnedOffset(LearnedWeight):
    """The weight itself is trained through the rounding (straight-through estimator; I&S-ViT)."""

    def __init__(self, inner: UniformQuantizer, weight: Tensor) -> None:
        super().__init__(inner, weight)
        self.trained = nn.Parameter(weight.detach().clone())

    def fake_quantize(self, x: Tensor) -> Tensor:
        return self._values(round_through(self.trained / self._step) + self._zero)

    def codes(self, weight: Tensor) -> Tensor:
        return self.inner.quantize(self.trained.detach())


class LearnedStep(Quantizer):
    """An activation quantizer that passes gradients, learns its step (LSQ) and drops (QDrop).

    Attributes:
        step: the learned scale, or None where the quantizer has no step to learn (logarithmic, dynamic).
        keep: probability that a value is quantized; else it stays in full precision.
    """

    def __init__(self, inner: Quantizer, generator: torch.Generator) -> None:
        super().__init__(inner.spec, inner.site, inner.axis)
        self.inner, self.keep = inner, 1.0
        self.active = True
        self._generator = generator
        learns = isinstance(inner, UniformQuantizer) and not inner.spec.dynamic
        self.step = nn.Parameter(inner.scale.clone()) if learns else None

    @property
    def initialised(self) -> bool:
        return True

    def fake_quantize(self, x: Tensor) -> Tensor:
        if self.step is None:
            values = x + (self.inner.fake_quantize(x.detach()) - x).detach()
        else:
            values = self._learnable(x, self.step)
        if self.keep >= 1:
            return values
        kept = torch.rand(x.shape, generator=self._generator, device=x.device) < self.keep
        return torch.where(kept, values, x)

    def _learnable(self, x: Tensor, step: Tensor) -> Tensor:
        inner = self.inner
        assert isinstance(inner, UniformQuantizer)
        low, high = inner.code_range
        # LSQ, section 2.2: without it the step's gradient grows with the number of values.
        gain = 1 / math.sqrt(x.numel() / len(step) * high)
        scaled = step.clamp_min(TINY)
        scaled = scaled * gain + (scaled * (1 - gain)).detach()
        scale, zero_point = _spread(scaled, inner, x), _spread(inner.zero_point, inner, x)
        codes = (round_through(x / scale) + zero_point).clamp(low, high)
        return (codes - zero_point) * scale

    def finish(self) -> Quantizer:
        """Return the calibrated quantizer with the learned step."""
        if self.step is not None:
            assert isinstance(self.inner, UniformQuantizer)
            step = self.step.detach().clamp_min(TINY)
            self.inner.set_parameters(step, self.inner.zero_point)
        self.inner.active = True
        return self.inner


def _spread(values: Tensor, quantizer: UniformQuantizer, x: Tensor) -> Tensor:
    """Shape one value per group so that it meets its entries of ``x``."""
    if values.numel() == 1:
        return values
    axis = (quantizer.axis or 0) % x.dim()
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.repeat_interleave(x.shape[axis] // values.numel()).view(shape)

"""Trainable quantizers: roundings, weights, clipping, activation steps and ranges.

Each stands in the place of a calibrated quantizer while its unit is reconstructed, and hands back what
it has trained at the end.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.calibration.range_rules import grouped
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import (
    TINY,
    choose,
    extremes,
    round_through,
    scale_and_zero_point,
    spread,
    trainable_fake_quantize,
)
from vit_ptq_bench.methods.quantization.quantizers.base import CodedQuantizer, Quantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

ZETA, GAMMA = 1.1, -0.1
"""Stretch of the rectified sigmoid (AdaRound, equation 23)."""

CLIP_START = 4.0
"""Start of the clipping logits: sigmoid(4) = 0.982 of the range (OmniQuant, LRQuant)."""

SMALLEST_GAIN = 0.01
"""A scale must stay positive."""


class TrainableQuantizer(Quantizer):
    """Base of all trainable quantizers: active from the start, with the calibrated quantizer at hand.

    Attributes:
        inner: the calibrated quantizer.
    """

    def __init__(self, inner: Quantizer) -> None:
        super().__init__(inner.spec, inner.site, inner.axis)
        self.inner = inner
        self.active = True

    @property
    def initialised(self) -> bool:
        return True


class TrainableWeight(TrainableQuantizer):
    """Base of the ways to learn a weight's codes.

    Attributes:
        settled: whether it gives the weight that its codes will be, not the one that is trained on.
    """

    inner: CodedQuantizer
    settled: bool = False

    @abstractmethod
    def codes(self, weight: Tensor) -> Tensor:
        """Return the integer codes that were trained (int32, shape of ``weight``).

        Sets the scales of `inner` where those were trained too.
        """

    def regulariser(self, exponent: float) -> Tensor | None:
        """Return the penalty on undecided roundings; None where there are none."""
        return None


def rectified(alpha: Tensor) -> Tensor:
    """Return AdaRound's ``h = clip(1.2 sigmoid(alpha) - 0.1, 0, 1)`` (any shape)."""
    return (alpha.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def logit_of(fraction: Tensor) -> Tensor:
    """Return the alpha at which `rectified` is ``fraction``, in [0, 1] (any shape)."""
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)


def undecided(up: Tensor, exponent: float) -> Tensor:
    """Return AdaRound's penalty ``sum(1 - |2 h - 1|^exponent)`` of roundings h (any shape)."""
    return (1 - (2 * up - 1).abs().pow(exponent)).sum()


class TrainableCodes(TrainableWeight):
    """Base of the two ways to learn codes on calibrated uniform grids."""

    inner: UniformQuantizer

    def __init__(self, inner: UniformQuantizer, weight: Tensor) -> None:
        super().__init__(inner)
        scale, zero_point = inner.shaped(weight)
        self._step, self._zero = scale, zero_point.float()
        self._low, self._high = inner.code_range

    def _values(self, codes: Tensor) -> Tensor:
        return (codes.clamp(self._low, self._high) - self._zero) * self._step


class TrainableRounding(TrainableCodes):
    """AdaRound: each weight goes up or down, ``floor(w / s) + h(alpha)`` (Nagel et al. 2020).

    ``h = clip(1.2 sigmoid(alpha) - 0.1, 0, 1)`` starts at the weight's own fraction, so that the soft
    weight is the full-precision one at first (inside the range of the codes).
    """

    def __init__(self, inner: UniformQuantizer, weight: Tensor) -> None:
        super().__init__(inner, weight)
        quotient = weight.detach() / self._step
        self._floor = quotient.floor() + self._zero
        fraction = quotient - quotient.floor()
        self.alpha = nn.Parameter(logit_of(fraction))

    def fake_quantize(self, x: Tensor) -> Tensor:
        up = (self.alpha >= 0) if self.settled else rectified(self.alpha)
        return self._values(self._floor + up)

    def codes(self, weight: Tensor) -> Tensor:
        codes = self._floor + (self.alpha >= 0)
        return codes.clamp(self._low, self._high).to(torch.int32)

    def regulariser(self, exponent: float) -> Tensor:
        return undecided(rectified(self.alpha), exponent)


class TrainableOffset(TrainableCodes):
    """The weight itself is trained through the rounding (straight-through estimator; I&S-ViT).

    Attributes:
        trained: the weight.
        log_scale: logarithm of the factors on the calibrated scales, [groups], where those are trained
            too (AdaQuant); None: they stay.
    """

    log_scale: nn.Parameter | None

    def __init__(self, inner: UniformQuantizer, weight: Tensor) -> None:
        super().__init__(inner, weight)
        self.trained = nn.Parameter(weight.detach().clone())
        self.log_scale = None

    def fake_quantize(self, x: Tensor) -> Tensor:
        if self.log_scale is not None:
            scale = self.inner.scale * self.log_scale.exp()
            return quantize_through(self.trained, scale, self.inner.zero_point, self.inner)
        return self._values(round_through(self.trained / self._step) + self._zero)

    def codes(self, weight: Tensor) -> Tensor:
        return self.inner.quantize(self.trained.detach())


class TrainableClip(TrainableWeight):
    """Learned weight clipping: the range of each row is ``(sigmoid(l) min, sigmoid(u) max)``.

    Source: OmniQuant (Shao et al., ICLR 2024, equation 2), as LRQuant uses it. The range follows the weight
    it is given, which a smoothing may scale.

    Attributes:
        lower, upper: the logits l and u, [groups].
        gain: a factor on the dequantized row, [groups], folded into its scale at the end; None: 1.
    """

    inner: UniformQuantizer

    def __init__(self, inner: UniformQuantizer, weight: Tensor, gain: bool) -> None:
        super().__init__(inner)
        groups = len(grouped(weight, inner))
        self.lower = nn.Parameter(weight.new_full((groups,), CLIP_START))
        self.upper = nn.Parameter(weight.new_full((groups,), CLIP_START))
        self.gain = nn.Parameter(weight.new_ones(groups)) if gain else None

    def _range(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        low, high = extremes(grouped(weight, self.inner), (1,))
        return self.lower.sigmoid() * low.squeeze(1), self.upper.sigmoid() * high.squeeze(1)

    def fake_quantize(self, x: Tensor) -> Tensor:
        values = quantize_through(x, *grid_through(*self._range(x), self.inner), self.inner)
        if self.gain is None:
            return values
        return values * spread(self._gains(self.gain), x, self.axis)

    def codes(self, weight: Tensor) -> Tensor:
        self.inner.set_range(*(end.detach() for end in self._range(weight)))
        codes = self.inner.quantize(weight)
        if self.gain is not None:
            scale = self.inner.scale * self._gains(self.gain).detach()
            self.inner.set_parameters(scale, self.inner.zero_point)
        return codes

    @staticmethod
    def _gains(gain: Tensor) -> Tensor:
        return gain.clamp_min(SMALLEST_GAIN)


class BatchRange(TrainableQuantizer):
    """An activation quantizer with the range of what passes, through which gradients flow.

    What is trained lies before it (smoothing). A range without gradient would hide from the smoothing
    that it changes the step.
    """

    def fake_quantize(self, x: Tensor) -> Tensor:
        if not isinstance(self.inner, UniformQuantizer):
            with torch.no_grad():
                self.inner.set_range(*torch.aminmax(grouped(x, self.inner), dim=1))
            return x + (self.inner.fake_quantize(x.detach()) - x).detach()
        low, high = extremes(x, self._dims(x))
        scale, zero = grid_through(low, high, self.inner)
        return quantize_through(x, scale, zero, self.inner)

    def _dims(self, x: Tensor) -> tuple[int, ...]:
        if self.spec.granularity == "token":
            return (-1,)
        kept = None if self.axis is None else self.axis % x.dim()
        return tuple(d for d in range(x.dim()) if d != kept)


def grid_through(low: Tensor, high: Tensor, quantizer: UniformQuantizer) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of a range as ``quantizer`` would have them, differentiable."""
    spec = quantizer.spec
    return scale_and_zero_point(low, high, spec.bits, spec.symmetric, round_through)


def quantize_through(x: Tensor, scale: Tensor, zero: Tensor, quantizer: UniformQuantizer) -> Tensor:
    """Fake-quantize ``x``; the rounding passes gradients to ``x``, ``scale`` and ``zero``.

    Args:
        x: any shape.
        scale, zero: [groups], or of a shape that meets ``x``.
        quantizer: gives axis and code range.
    """
    if scale.dim() != x.dim():
        scale, zero = (spread(values, x, quantizer.axis) for values in (scale, zero))
    return trainable_fake_quantize(x, scale, zero.to(scale.dtype), quantizer.code_range)


class TrainableActivation(TrainableQuantizer):
    """Base of activation quantizers that pass gradients, may learn one quantity, and drop (QDrop).

    Attributes:
        step: what is trained, or None where the quantizer has nothing to train.
        keep: probability that a value is quantized; else it stays in full precision.
    """

    step: nn.Parameter | None

    def __init__(self, inner: Quantizer, generator: torch.Generator) -> None:
        super().__init__(inner)
        self.keep = 1.0
        self._generator = generator

    def fake_quantize(self, x: Tensor) -> Tensor:
        if self.step is None:
            values = x + (self.inner.fake_quantize(x.detach()) - x).detach()
        else:
            values = self._with_step(x, self.step)
        if self.keep >= 1:
            return values
        kept = torch.rand(x.shape, generator=self._generator, device=x.device).lt_(self.keep)
        return choose(kept, values, x)

    @abstractmethod
    def _with_step(self, x: Tensor, step: Tensor) -> Tensor:
        """Fake-quantize with gradients to ``x`` and ``step``."""

    def finish(self) -> Quantizer:
        """Return the calibrated quantizer with what was trained."""
        if self.step is not None:
            self._set(self.step.detach())
        self.inner.active = True
        return self.inner

    @abstractmethod
    def _set(self, step: Tensor) -> None:
        """Give the calibrated quantizer what was trained."""


class TrainableStep(TrainableActivation):
    """An activation quantizer that learns its step (LSQ); logarithmic and dynamic ones have none to train."""

    def __init__(self, inner: Quantizer, generator: torch.Generator) -> None:
        super().__init__(inner, generator)
        learns = isinstance(inner, UniformQuantizer) and not inner.spec.dynamic
        self.step = nn.Parameter(inner.scale.clone()) if learns else None

    def _with_step(self, x: Tensor, step: Tensor) -> Tensor:
        inner = self.inner
        assert isinstance(inner, UniformQuantizer)
        # LSQ, section 2.2: without it the step's gradient grows with the number of values.
        gain = 1 / math.sqrt(x.numel() / len(step) * inner.code_range[1])
        scaled = step.clamp_min(TINY)
        scaled = scaled * gain + (scaled * (1 - gain)).detach()
        return quantize_through(x, scaled, inner.zero_point, inner)

    def _set(self, step: Tensor) -> None:
        assert isinstance(self.inner, UniformQuantizer)
        self.inner.set_parameters(step.clamp_min(TINY), self.inner.zero_point)


class TrainableLogStep(TrainableStep):
    """An activation quantizer that learns the logarithm of the factor on its step.

    A rate then means the same share of every step, however large the activation is. LSQ's gradient scale
    would change nothing, for Adam divides by the gradient's size.
    """

    def __init__(self, inner: Quantizer, generator: torch.Generator) -> None:
        super().__init__(inner, generator)
        if self.step is not None:
            self._start = inner.scale.clone()
            self.step = nn.Parameter(torch.zeros_like(inner.scale))

    def _with_step(self, x: Tensor, step: Tensor) -> Tensor:
        inner = self.inner
        assert isinstance(inner, UniformQuantizer)
        return quantize_through(x, self._start * step.exp(), inner.zero_point, inner)

    def _set(self, step: Tensor) -> None:
        assert isinstance(self.inner, UniformQuantizer)
        self.inner.set_parameters(self._start * step.exp(), self.inner.zero_point)


class TrainableLogScale(TrainableActivation):
    """A quantizer with levels ``s l - c`` for fixed l, of which the logarithm of s is learned.

    The rounding to the nearest level passes gradients, as LSQ has it: for y = x + c and y^ = x^ + c the
    gradient is y^ - y by log s up to the largest level, y^ beyond, and 1 and 0 by x.
    """

    def __init__(self, inner: Quantizer, generator: torch.Generator) -> None:
        super().__init__(inner, generator)
        self._start = inner.scale.clone()
        self.step = nn.Parameter(torch.zeros_like(inner.scale))

    def _with_step(self, x: Tensor, step: Tensor) -> Tensor:
        self._set(step.detach())
        with torch.no_grad():
            values = self.inner.fake_quantize(x.detach())
            shift = self.inner.shift_at(x)
            shifted = x + shift
            inside = (shifted <= spread(self.inner.scale, x, self.axis)).to(x.dtype)
            slope = values + shift - shifted * inside
        gain = 1 / math.sqrt(x.numel() / len(step))
        moving = spread(step * gain, x, self.axis)
        return values + inside * (x - x.detach()) + slope * (moving - moving.detach())

    def _set(self, step: Tensor) -> None:
        self.inner.scale = self._start * step.exp()

    def finish(self) -> Quantizer:
        """Return the calibrated quantizer with the trained scale, or the one it had."""
        if self.step is None:
            self.inner.scale = self._start
        return super().finish()

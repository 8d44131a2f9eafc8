"""Logarithmic quantizers for attention maps."""

from typing import ClassVar

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY, spread
from vit_ptq_bench.methods.quantization.quantizers.base import Domain, Quantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form


@register_form("log2", "log-sqrt2", "log-sqrt2-plus-zero")
class LogQuantizer(Quantizer):
    """Logarithmic quantizer for values in [0, 1]: ``code = round(-k log2(x / s))``, ``s 2^(-code/k)``.

    k = 1 is log2 (FQ-ViT), k = 2 is log-sqrt2 (RepQ-ViT). The last of the 2^b codes stands for zero, so
    that b bits mean 2^b values; scheme ``log-sqrt2-plus-zero`` has all 2^b codes and an exact zero
    besides, as RepQ-ViT's released code (2^b + 1 values).
    """

    domain: ClassVar[Domain] = "nonnegative"
    levels_scale: ClassVar[bool] = True

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.steps_per_octave = 1 if spec.scheme == "log2" else 2
        self.zero_code = 2**spec.bits - (spec.scheme != "log-sqrt2-plus-zero")

    @property
    def groups(self) -> int | None:
        return self.scale.numel()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the largest value, ``s = high`` (shape [groups]); ``low`` is taken to be zero."""
        self._require_finite(low, high)
        self.scale = high.detach().float().reshape(-1).clamp_min(TINY)

    def reach(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Zero, and half a step above the largest level."""
        scale = spread(self.scale, x, self.axis)
        return torch.zeros_like(scale), scale * 2 ** (0.5 / self.steps_per_octave)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the nearest level in the logarithmic sense; 0 maps to 0."""
        k, scale = self.steps_per_octave, spread(self.scale, x, self.axis)
        # Minus the codes. log2(0) is -inf, which is beyond the last code, and exp2(-inf) is 0.
        exponents = torch.log2(x / scale).mul_(k).round_().clamp_max_(0)
        torch.threshold_(exponents, -self.zero_code, -torch.inf)
        return exponents.div_(k).exp2_().mul_(scale)


@register_form("log-int-softmax")
class LogIntSoftmaxQuantizer(Quantizer):
    """Log-Int-Softmax (FQ-ViT, section 3.3): codes of attention weights from integer ratios.

    ``r = round(sum exp / exp_i) = round(1 / p)``, ``code = floor(log2 r)``, one more where
    ``r >= 1.5 * 2^floor``; the value is ``2^-code``, so the product with the values is a shift. The last of
    the 2^b codes stands for zero. The scale is 1: a softmax needs no calibration.
    """

    domain: ClassVar[Domain] = "nonnegative"

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Mark as calibrated; the range of a softmax is known."""
        self._require_finite(low, high)
        self.scale = torch.ones_like(high).reshape(-1)[:1].float()

    def problem(self) -> str | None:
        """The scale is 1 and nothing else."""
        found = super().problem()
        return found or (None if bool((self.scale == 1).all()) else "scales that are not 1")

    def reach(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Zero to one: a softmax gives nothing else."""
        return torch.zeros_like(self.scale), torch.ones_like(self.scale)

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes of probabilities as whole floats, not clipped; 0 gives infinity."""
        ratio = torch.round(1 / x)
        octave = torch.log2(ratio).floor_()
        return octave.add_(ratio.ge_(1.5 * torch.exp2(octave)))

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the powers of two that the codes stand for."""
        codes = self.codes(x)
        exponents = torch.threshold_(codes.neg_(), 1 - 2**self.spec.bits, -torch.inf)
        return exponents.exp2_()

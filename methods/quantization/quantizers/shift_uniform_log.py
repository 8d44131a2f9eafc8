"""Shift-uniform-log2: a uniform quantizer on the logarithm of a shifted attention map (I&S-ViT)."""

from typing import ClassVar

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY, spread
from vit_ptq_bench.methods.quantization.quantizers.base import Domain, Quantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form

ETA = 0.01
"""Shift where `set_range` alone chooses."""


@register_form("shift-uniform-log2")
class ShiftUniformLogQuantizer(Quantizer):
    """``t = -log2(a + eta)``, ``q = clip(round(t / s) + z, 0, 2^b - 1)``, ``a^ = 2^round(-s (q - z)) - eta``.

    Buffers ``scale`` (s), ``zero_point`` (z, whole) and ``eta``, float32 [groups]. Source: Zhong et al.,
    I&S-ViT, section 3.2; the released code has 2^b + 1 codes when it runs, here there are 2^b.
    """

    domain: ClassVar[Domain] = "nonnegative"
    zero_point: Tensor
    eta: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.register_buffer("zero_point", torch.empty(0))
        self.register_buffer("eta", torch.empty(0))

    @property
    def groups(self) -> int | None:
        return self.scale.numel()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover [low, high] (>= 0, shape [groups]) with the shift `ETA`."""
        self.set_shifted_range(low, high, ETA)

    def set_shifted_range(self, low: Tensor, high: Tensor, eta: float | Tensor) -> None:
        """Cover [low, high] (>= 0, shape [groups]) with a shift (> 0).

        Raises:
            MethodError: a bound is not finite.
        """
        self._require_finite(low, high)
        low, high = (end.detach().float().reshape(-1).clamp_min(0) for end in (low, high))
        shift = torch.as_tensor(eta, dtype=torch.float32, device=low.device).expand_as(low)
        first, last = -torch.log2(high + shift), -torch.log2(low + shift)
        width = (last - first) / (2**self.spec.bits - 1)
        self.scale = torch.where(width < TINY, 1.0, width)
        self.zero_point = torch.round(-first / self.scale)
        self.eta = shift.clone()

    def problem(self) -> str | None:
        """Also of shifts and zero points, one for each scale."""
        found = super().problem()
        if found or self.spec.is_float or not self.scale.numel():
            return found
        shapes = {tuple(part.shape) for part in (self.scale, self.zero_point, self.eta)}
        if len(shapes) > 1 or self.scale.dim() != 1:
            return f"scales, zero points and shifts of shapes {sorted(shapes)}"
        if self.zero_point.dtype != torch.float32 or self.eta.dtype != torch.float32:
            return "zero points or shifts that are not float32"
        if not bool(torch.isfinite(self.zero_point).all()):
            return "zero points that are not finite"
        if not bool((torch.isfinite(self.eta) & (self.eta > 0)).all()):
            return "shifts that are no positive numbers"
        return None

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the level of the nearest code of the logarithm; no gradient passes."""
        scale, zero, eta = (
            spread(part, x, self.axis) for part in (self.scale, self.zero_point, self.eta)
        )
        codes = torch.log2(x.clamp_min(0) + eta).neg_().div_(scale).round_().add_(zero)
        logarithm = codes.clamp_(0, 2**self.spec.bits - 1).sub_(zero).mul_(scale)
        return torch.exp2(logarithm.neg_().round_()).sub_(eta)

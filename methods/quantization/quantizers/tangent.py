"""A grid for attention maps that is fine near 0 and near 1: uniform codes of a tangent."""

from typing import ClassVar

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY, spread
from vit_ptq_bench.methods.quantization.quantizers.base import Domain, Quantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form

ANGLE = 1.4
"""Where `set_range` alone chooses: the lowest level above 0 is then 1/109 of the largest at four bits."""


@register_form("tangent")
class TangentQuantizer(Quantizer):
    """``q = round(n (1 + tan(t (2 a / s - 1)) / tan t) / 2)``, n = 2^b - 1, t an angle below pi / 2.

    Levels from 0 to s, symmetric about s / 2, the finer towards both ends the larger the angle; t near 0 is a
    uniform grid. Our reading of DopQ-ViT's tan quantizer, of whose formula its abstract says nothing. Buffers
    ``scale`` (s) and ``angle`` (t), float32 [groups].
    """

    domain: ClassVar[Domain] = "nonnegative"
    levels_scale: ClassVar[bool] = True
    angle: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.register_buffer("angle", torch.empty(0))

    @property
    def groups(self) -> int | None:
        return self.scale.numel()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the largest level, ``s = high`` (shape [groups]), and the angle `ANGLE`; the lowest is 0."""
        self._require_finite(low, high)
        scale = high.detach().float().reshape(-1).clamp_min(TINY)
        self.set_levels(scale, torch.full_like(scale, ANGLE))

    def set_levels(self, scale: Tensor, angle: Tensor) -> None:
        """Set s (> 0) and t (above 0, below pi / 2), both [groups].

        Raises:
            MethodError: a value is not finite.
        """
        self._require_finite(scale, angle)
        self.scale = scale.detach().float().reshape(-1).contiguous()
        self.angle = angle.detach().float().reshape(-1).contiguous()

    def problem(self) -> str | None:
        """Also of the angles, one for each scale, above 0 and below a right angle."""
        found = super().problem()
        if found or self.spec.is_float or not self.scale.numel():
            return found
        if self.scale.dim() != 1 or self.angle.shape != self.scale.shape:
            return f"scales {tuple(self.scale.shape)} with angles {tuple(self.angle.shape)}"
        if self.angle.dtype != torch.float32:
            return f"angles of type {self.angle.dtype}, not float32"
        if not bool(((self.angle > 0) & (self.angle < torch.pi / 2)).all()):
            return "angles that are not between 0 and a right angle"
        return None

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the level of the nearest code of the tangent; no gradient passes."""
        scale, angle = spread(self.scale, x, self.axis), spread(self.angle, x, self.axis)
        bound, last = torch.tan(angle), 2**self.spec.bits - 1
        ratio = (x / scale).clamp(0, 1).mul(2).sub(1)
        codes = torch.tan(ratio * angle).div(bound).add(1).mul(last / 2).round()
        tangent = codes.mul(2 / last).sub(1).mul(bound)
        return torch.atan(tangent).div(angle).add(1).mul(scale / 2)

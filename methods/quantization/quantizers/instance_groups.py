"""Uniform quantizers whose channels or tokens are put into groups anew for every input (IGQ-ViT)."""

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import (
    fake_quantize,
    scale_and_zero_point,
    widened,
)
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form


@register_form("instance-channel-groups", "instance-token-groups")
class InstanceGroupQuantizer(Quantizer):
    """A few uniform grids per tensor; which of them a channel or token takes follows from its own range.

    Of each instance (the first dimension; windows of a Swin are instances) every channel (last dimension),
    or every token (all but the last), has its smallest and largest value compared with those typical of the
    groups, and takes the nearest. So the grouping is dynamic, the grids are static. Buffers ``scale``,
    ``low`` and ``high`` (float32) and ``zero_point`` (whole, float32), all [groups]. Source: Moon et al.,
    CVPR 2024.
    """

    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        for name in ("zero_point", "low", "high"):
            self.register_buffer(name, torch.empty(0))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Make one group that covers [low, high] (the extremes of shapes [n])."""
        ends = low.amin().reshape(1), high.amax().reshape(1)
        self.set_groups(ends, ends)

    def set_groups(self, centres: tuple[Tensor, Tensor], ends: tuple[Tensor, Tensor]) -> None:
        """Set the groups, two of [groups] each.

        Args:
            centres: smallest and largest value of what is typical of a group; it takes what is nearest.
            ends: the range of a group's grid.

        Raises:
            MethodError: a value is not finite.
        """
        self._require_finite(*centres, *ends)
        low, high = widened(*(end.detach().float() for end in ends))
        scale, zero_point = scale_and_zero_point(low, high, self.spec.bits, False)
        self.scale, self.zero_point = scale.contiguous(), zero_point.contiguous()
        self.low, self.high = (centre.detach().float().contiguous() for centre in centres)

    def problem(self) -> str | None:
        """Also of ranges and zero points, one for each scale."""
        found = super().problem()
        if found or self.spec.is_float or not self.scale.numel():
            return found
        parts = {
            "zero points": self.zero_point,
            "lower centres": self.low,
            "upper centres": self.high,
        }
        for what, part in parts.items():
            if self.scale.dim() != 1 or part.shape != self.scale.shape:
                return f"scales {tuple(self.scale.shape)} with {what} {tuple(part.shape)}"
            if part.dtype != torch.float32 or not bool(torch.isfinite(part).all()):
                return f"{what} that are not finite float32 numbers"
        return None

    def ranges(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return smallest and largest value of what takes a group of its own, in shapes that meet ``x``."""
        if self.spec.scheme == "instance-token-groups":
            dims: tuple[int, ...] = (-1,)
        else:
            dims = tuple(range(1, x.dim() - 1))
        return (x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)) if dims else (x, x)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return each channel's or token's values on the grid of the nearest group."""
        if x.numel() == 0:
            return x
        low, high = self.ranges(x)
        group = nearest(low, high, self.low, self.high)
        codes = (0, 2**self.spec.bits - 1)
        return fake_quantize(x, self.scale[group], self.zero_point[group], codes, divide=True)


def nearest(low: Tensor, high: Tensor, group_low: Tensor, group_high: Tensor) -> Tensor:
    """Return the number of the group whose range is nearest, for ranges of any shape."""
    best = torch.full_like(low, torch.inf)
    number = torch.zeros(low.shape, dtype=torch.long, device=low.device)
    for index, (bottom, top) in enumerate(zip(group_low, group_high, strict=True)):
        distance = (low - bottom).square() + (high - top).square()
        closer = distance < best
        best = torch.where(closer, distance, best)
        number = torch.where(closer, index, number)
    return number

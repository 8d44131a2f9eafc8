"""Uniform quantizers: affine or symmetric, static or dynamic, of one grid or two per row.

Notation: ``U(x) = s (clip(round(x / s) + z, 0, 2^b - 1) - z)``; rounding is half to even.
"""

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import (
    fake_quantize,
    scale_and_zero_point,
    spread,
    widened,
)
from vit_ptq_bench.methods.quantization.quantizers.base import CodedQuantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form


@register_form("uniform", "power-of-two-factor")
class UniformQuantizer(CodedQuantizer):
    """Affine or symmetric uniform quantizer, one scale per tensor, channel, head or token.

    Buffers ``scale`` (float32) and ``zero_point`` (int32), both of shape [groups]. Affine codes are
    0 .. 2^b - 1, symmetric codes -2^(b-1) .. 2^(b-1) - 1 with zero point 0. The zero point need not
    lie among the codes: the range of a channel may exclude zero. Scheme ``power-of-two-factor`` is the same
    quantizer with scales that are one step over powers of two (FQ-ViT); the calibration sees to that.
    """

    zero_point: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        self._fusible: bool | None = None

    @property
    def code_range(self) -> tuple[int, int]:
        """Lowest and highest integer code."""
        if self.spec.symmetric:
            return -(2 ** (self.spec.bits - 1)), 2 ** (self.spec.bits - 1) - 1
        return 0, 2**self.spec.bits - 1

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover [low, high]; shapes [groups]. See `scale_and_zero_point` for the formulas.

        Raises:
            MethodError: a bound is not finite.
        """
        self._require_finite(low, high)
        if not self.spec.symmetric:
            low, high = widened(low, high)
        self.set_parameters(*self.grid_over(low, high))

    def grid_over(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of this form's grid over a range, of the shape of its ends."""
        return scale_and_zero_point(low, high, self.spec.bits, self.spec.symmetric)

    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set scale (> 0) and zero point, each of shape [groups].

        A zero point that is not an integer (RepQ-ViT's released code) is kept as float32; codes are
        then no integers, which is allowed for activations only. What is kept is `representable`.

        Raises:
            MethodError: a value is not finite.
        """
        self._require_finite(scale, zero_point)
        scale, zero_point = self.representable(scale.detach(), zero_point.detach())
        self.scale = scale.detach().float().reshape(-1).contiguous()
        whole = bool((zero_point == zero_point.round()).all())
        kind = torch.int32 if whole else torch.float32
        self.zero_point = zero_point.detach().to(kind).reshape(-1).contiguous()
        self._fusible = None

    def representable(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and zero point that this form has in the place of others; here they are the same.

        Args:
            scale: > 0, float, any shape.
            zero_point: of the same shape.
        """
        return scale, zero_point

    @property
    def groups(self) -> int | None:
        return self.scale.numel()

    def problem(self) -> str | None:
        """Also of the zero points, of which there is one for each scale, and of the number of scales."""
        found = super().problem()
        if found or self.spec.dynamic or self.spec.is_float or not self.scale.numel():
            return found
        zero = self.zero_point
        if self.scale.dim() != 1 or zero.shape != self.scale.shape:
            return f"scales {tuple(self.scale.shape)} with zero points {tuple(zero.shape)}"
        if zero.dtype not in (torch.int32, torch.float32):
            return f"zero points of type {zero.dtype}, neither int32 nor float32"
        if self.spec.symmetric and bool(zero.any()):
            return "zero points that are not zero, although its codes are symmetric"
        ends = [self.scale * (code - zero) for code in self.code_range]
        if not all(bool(torch.isfinite(end).all()) for end in ends):
            return "a range that is not finite"
        return None

    def code_problem(self) -> str | None:
        """Also of zero points that are no whole numbers."""
        whole = self.zero_point.dtype == torch.int32
        return self.problem() or (None if whole else "zero points that are no whole numbers")

    def reach(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Half a step beyond the levels of both outermost codes; a dynamic range holds all there is."""
        if self.spec.dynamic:
            everything = x.new_tensor(torch.inf)
            return -everything, everything
        scale, zero_point = self.shaped(x)
        low, high = self.code_range
        return scale * (low - 0.5 - zero_point), scale * (high + 0.5 - zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the integer codes of ``x`` (int32, same shape)."""
        scale, zero_point = self.shaped(x)
        low, high = self.code_range
        return (torch.round(x / scale) + zero_point).clamp(low, high).to(torch.int32)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return ``s (codes - z)`` in float32."""
        scale, zero_point = self.shaped(codes)
        return (codes - zero_point).float() * scale

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Fake-quantize; gradients pass straight through inside the range."""
        if self.spec.dynamic:
            return self._dynamic(x)
        fusible = self._is_fusible()
        if fusible and x.is_cuda:
            return self._fused(x)
        # torch's fused operators multiply by the reciprocal: the same bits on every device.
        return fake_quantize(x, *self.shaped(x), self.code_range, divide=not fusible)

    def _fused(self, x: Tensor) -> Tensor:
        low, high = self.code_range
        if self.scale.numel() == 1:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, low, high)
        axis = (self.axis or 0) % x.dim()
        scale, zero_point = (values.flatten() for values in self.shaped(x))
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, low, high)

    def _dynamic(self, x: Tensor) -> Tensor:
        if x.numel() == 0:  # a detector's heads, where nothing was found
            return x
        dims = (-1,) if self.spec.granularity == "token" else tuple(range(x.dim()))
        minimum, maximum = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
        scale, zero_point = self.grid_over(minimum, maximum)
        codes = torch.round(x / scale)
        if self.spec.symmetric:
            return codes.clamp_(*self.code_range).mul_(scale)
        return codes.add_(zero_point).clamp_(*self.code_range).sub_(zero_point).mul_(scale)

    def settle(self) -> None:
        """Whether torch's fused operators do the same."""
        self._is_fusible()

    def _is_fusible(self) -> bool:
        if self._fusible is None:
            low, high = self.code_range
            inside = bool(((self.zero_point >= low) & (self.zero_point <= high)).all())
            self._fusible = inside and self.zero_point.dtype == torch.int32
        return self._fusible

    def shaped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point in a shape that meets ``x``."""
        return spread(self.scale, x, self.axis), spread(self.zero_point, x, self.axis)


@register_form("dual-uniform")
class DualUniformQuantizer(UniformQuantizer):
    """Affine weight quantizer with two scales per row: one for the outlier columns, one for the rest (ERQ).

    Which columns hold outliers is the same for all rows: `outliers`, bool over the columns of the flattened
    weight. With `outliers` set, ``scale`` and ``zero_point`` hold 2 R values, those of the ordinary columns
    first; until then it is the plain quantizer per row.
    """

    outliers: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.register_buffer("outliers", torch.empty(0, dtype=torch.bool))

    def set_dual(
        self, ordinary: UniformQuantizer, outlying: UniformQuantizer, outliers: Tensor
    ) -> None:
        """Take scales and zero points per row from two quantizers, and the outlier columns ([K])."""
        self.outliers = outliers
        self.set_parameters(
            torch.cat([ordinary.scale, outlying.scale]),
            torch.cat([ordinary.zero_point, outlying.zero_point]),
        )

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover [low, high] in all columns; shapes [R]."""
        self.outliers = self.outliers[:0]
        super().set_range(low, high)

    @property
    def groups(self) -> int | None:
        return self.scale.numel() // (2 if self.outliers.numel() else 1)

    def problem(self) -> str | None:
        """Also of the outlier columns: two scales a row where there are some."""
        found = super().problem()
        if found or not self.outliers.numel():
            return found
        if self.outliers.dtype != torch.bool or self.scale.numel() % 2:
            return f"outlier columns of type {self.outliers.dtype} with {self.scale.numel()} scales"
        return None

    def shaped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of every entry of a weight [R, ...]."""
        if self.outliers.numel() == 0:
            return super().shaped(x)
        return self._by_column(self.scale, x), self._by_column(self.zero_point, x)

    def _by_column(self, values: Tensor, x: Tensor) -> Tensor:
        ordinary, outlying = values[:, None].chunk(2)
        return torch.where(self.outliers, outlying, ordinary).reshape(x.shape)

    def _is_fusible(self) -> bool:
        return self.outliers.numel() == 0 and super()._is_fusible()

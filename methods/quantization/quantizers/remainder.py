"""Uniform quantizers that keep the remainder of the rounding too, as a second code."""

import torch
from torch import Tensor

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import (
    scale_and_zero_point,
    spread,
    straight_through,
    widened,
)
from vit_ptq_bench.methods.quantization.quantizers.base import CodedQuantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form

FORM = "uniform-remainder"
"""Beginning of the forms' names; behind it the bits of the remainder."""


@register_form(*(f"{FORM}-{bits}" for bits in (2, 3, 4)))
class RemainderQuantizer(CodedQuantizer):
    """``Q(x) = s (q - z + r / (2^R - 1))``: a code q of b bits and a remainder r of R bits.

    ``u = clip(x / s, l - z, h - z)``, l and h being the lowest and the highest code, ``q = round(u) + z``
    and ``r = round((2^R - 1) (u - round(u)))``, kept within ``|r| < 2^(R-1)``. Source: ARCQ (ICONIP
    2022), which takes R = b. The bits of the spec are those that are stored, b + R. Two tensors of this
    form are multiplied without the product of their remainders (`low_order`): three integer products in
    the place of four.

    Buffers ``scale`` (float32) and ``zero_point`` (int32), both [groups], as of the uniform form at b bits.

    Raises:
        MethodError: the spec asks for a dynamic range, or leaves fewer than two bits for q.
    """

    zero_point: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.remainder_bits = int(spec.scheme.removeprefix(f"{FORM}-"))
        if not spec.is_float and (spec.dynamic or spec.bits - self.remainder_bits < 2):
            raise MethodError(
                f"{site}: the form {spec.scheme!r} is static and needs at least "
                f"{self.remainder_bits + 2} bits; use 'uniform' there"
            )
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))

    @property
    def code_bits(self) -> int:
        """b, the bits of q."""
        return self.spec.bits - self.remainder_bits

    @property
    def code_range(self) -> tuple[int, int]:
        """Of both codes as one: q 2^R + r, less an offset."""
        return 0, 2**self.spec.bits - 1

    @property
    def groups(self) -> int | None:
        return self.scale.numel()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover [low, high] with q alone; shapes [groups].

        Raises:
            MethodError: a bound is not finite.
        """
        self._require_finite(low, high)
        if not self.spec.symmetric:
            low, high = widened(low, high)
        scale, zero = scale_and_zero_point(low, high, self.code_bits, self.spec.symmetric)
        self.scale = scale.detach().float().reshape(-1).contiguous()
        self.zero_point = zero.detach().to(torch.int32).reshape(-1).contiguous()

    def problem(self) -> str | None:
        """Also of the zero points, whole numbers of which there is one for each scale."""
        found = super().problem()
        if found or self.spec.is_float or not self.scale.numel():
            return found
        if self.zero_point.shape != self.scale.shape or self.zero_point.dtype != torch.int32:
            return (
                f"scales {tuple(self.scale.shape)} with zero points {tuple(self.zero_point.shape)}"
            )
        return None

    def quantize(self, x: Tensor) -> Tensor:
        whole, remainder = self._parts(x)
        low, _ = self._whole_range()
        first = whole + spread(self.zero_point, x, self.axis) - low
        half = 2 ** (self.remainder_bits - 1)
        codes: Tensor = (first * 2**self.remainder_bits + remainder + half).to(torch.int32)
        return codes

    def dequantize(self, codes: Tensor) -> Tensor:
        low, _ = self._whole_range()
        half = 2 ** (self.remainder_bits - 1)
        first = torch.div(codes, 2**self.remainder_bits, rounding_mode="floor")
        whole = first + low - spread(self.zero_point, codes, self.axis)
        return self._value(whole.float(), (codes % 2**self.remainder_bits - half).float())

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the values of both codes; gradients pass straight through."""
        values = self._value(*self._parts(x.detach()))
        return straight_through(x, values) if x.requires_grad else values

    def low_order(self, values: Tensor) -> Tensor:
        """Return ``s r / (2^R - 1)`` of quantized values."""
        scale = spread(self.scale, values, self.axis)
        low: Tensor = values - scale * torch.round(values / scale)
        return low

    def _whole_range(self) -> tuple[int, int]:
        if self.spec.symmetric:
            return -(2 ** (self.code_bits - 1)), 2 ** (self.code_bits - 1) - 1
        return 0, 2**self.code_bits - 1

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``q - z`` and r."""
        zero = spread(self.zero_point, x, self.axis)
        low, high = self._whole_range()
        ratio = torch.minimum(
            torch.maximum(x / spread(self.scale, x, self.axis), low - zero), high - zero
        )
        whole = torch.round(ratio)
        most = 2 ** (self.remainder_bits - 1) - 1
        steps = 2**self.remainder_bits - 1
        return whole, torch.round(steps * (ratio - whole)).clamp_(-most, most)

    def _value(self, whole: Tensor, remainder: Tensor) -> Tensor:
        steps = 2**self.remainder_bits - 1
        value: Tensor = (whole + remainder / steps) * spread(self.scale, whole, self.axis)
        return value

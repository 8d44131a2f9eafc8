"""Quantizers: uniform (affine, symmetric; static, dynamic), logarithmic, twin uniform.

Every quantizer is a module that stands at one site and maps a float tensor to a float tensor of the
same shape ("fake quantization"). Its parameters are buffers, so they travel with the model.
Notation and formulas: ``U(x) = s (clip(round(x / s) + z, 0, 2^b - 1) - z)``; rounding is half to even.
"""

import torch
from torch import Tensor, nn

from methods.errors import MethodError
from methods.quantization.bits import TensorSpec
from methods.quantization.rounding import choose, fake_quantize

GELU_MINIMUM = 0.16997124254703522
"""Absolute value of the minimum of GELU: the range of the negative side after it."""

TINY = 1e-8


class Quantizer(nn.Module):
    """Base of all quantizers.

    Attributes:
        spec: what the bit table says of this site.
        site: name of the site in the model, for messages.
        axis: the dimension that has a scale per entry, None for one scale.
        active: False lets the tensor through unchanged.
    """

    scale: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.site = site
        self.axis = axis
        self.active = False
        self.register_buffer("scale", torch.empty(0))

    @property
    def initialised(self) -> bool:
        """Whether the quantizer has its parameters (dynamic and float ones need none)."""
        return self.spec.is_float or self.spec.dynamic or self.scale.numel() > 0

    @property
    def quantizes(self) -> bool:
        """Whether a forward now changes its input."""
        return self.active and not self.spec.is_float

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` fake-quantized (any float tensor; same shape and dtype)."""
        if not self.quantizes:
            return x
        if not self.initialised:
            raise MethodError(f"{self.site}: the quantizer was used before it was calibrated")
        return self.fake_quantize(x)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Quantize and dequantize ``x``, whether active or not."""
        raise MethodError(f"{type(self).__name__} cannot quantize")

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the parameters so that the codes cover [low, high] (shape [groups])."""
        raise MethodError(f"{type(self).__name__} has no range")

    def _require_finite(self, *tensors: Tensor) -> None:
        if not all(bool(torch.isfinite(t).all()) for t in tensors):
            raise MethodError(f"{self.site}: NaN or infinite values reached the quantizer")

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{self.spec.bits} bit, {self.spec.scheme}, {self.spec.granularity}"


class UniformQuantizer(Quantizer):
    """Affine or symmetric uniform quantizer, one scale per tensor, channel, head or token.

    Buffers ``scale`` (float32) and ``zero_point`` (int32), both of shape [groups]. Affine codes are
    0 .. 2^b - 1, symmetric codes -2^(b-1) .. 2^(b-1) - 1 with zero point 0. The zero point need not
    lie among the codes: the range of a channel may exclude zero.
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
        """Cover [low, high]; shapes [groups].

        Symmetric: ``s = max(|low|, |high|) / (2^(b-1) - 0.5)``, so that the extreme value falls on
        the border of the last code's cell.
        """
        self._require_finite(low, high)
        if self.spec.symmetric:
            bound = torch.maximum(low.abs(), high.abs())
            scale = (bound / (2 ** (self.spec.bits - 1) - 0.5)).clamp_min(TINY)
            self.set_parameters(scale, torch.zeros_like(scale))
            return
        # A constant tensor has no width: widen its range to zero, else 1 / scale overflows.
        flat = high - low < TINY
        low, high = (
            torch.where(flat, low.clamp_max(0), low),
            torch.where(flat, high.clamp_min(0), high),
        )
        scale = ((high - low) / (2**self.spec.bits - 1)).clamp_min(TINY)
        self.set_parameters(scale, torch.round(-low / scale))

    def set_parameters(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set scale (> 0) and zero point, each of shape [groups].

        A zero point that is not an integer (RepQ-ViT's released code) is kept as float32; codes are
        then no integers, which is allowed for activations only.
        """
        self._require_finite(scale, zero_point)
        self.scale = scale.detach().float().reshape(-1).contiguous()
        whole = bool((zero_point == zero_point.round()).all())
        kind = torch.int32 if whole else torch.float32
        self.zero_point = zero_point.detach().to(kind).reshape(-1).contiguous()
        self._fusible = None

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
        scale, zero_point = self._expanded(x)
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, low, high)

    def _dynamic(self, x: Tensor) -> Tensor:
        if x.numel() == 0:  # a detector's heads, where nothing was found
            return x
        dims = (-1,) if self.spec.granularity == "token" else tuple(range(x.dim()))
        levels = 2**self.spec.bits - 1
        if self.spec.symmetric:
            low, high = self.code_range
            scale = (x.abs().amax(dims, keepdim=True) / (levels / 2)).clamp_min(TINY)
            return torch.round(x / scale).clamp_(low, high).mul_(scale)
        minimum, maximum = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
        scale = ((maximum - minimum) / levels).clamp_min(TINY)
        zero_point = torch.round(-minimum / scale)
        return (torch.round(x / scale) + zero_point).clamp_(0, levels).sub_(zero_point).mul_(scale)

    def _is_fusible(self) -> bool:
        if self._fusible is None:
            low, high = self.code_range
            inside = bool(((self.zero_point >= low) & (self.zero_point <= high)).all())
            self._fusible = inside and self.zero_point.dtype == torch.int32
        return self._fusible

    def shaped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point in a shape that meets ``x``."""
        if self.scale.numel() == 1:
            return self.scale, self.zero_point
        shape = [1] * x.dim()
        shape[self.axis or 0] = -1
        scale, zero_point = self._expanded(x)
        return scale.view(shape), zero_point.view(shape)

    def _expanded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Repeat each scale over its equal block of entries of the axis."""
        block = x.shape[self.axis or 0] // self.scale.numel()
        if block == 1:
            return self.scale, self.zero_point
        return self.scale.repeat_interleave(block), self.zero_point.repeat_interleave(block)


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

    def shaped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of every entry of a weight [R, ...]."""
        if self.outliers.numel() == 0:
            return super().shaped(x)
        scale, zero_point = (self._by_column(v, x) for v in (self.scale, self.zero_point))
        return scale, zero_point

    def _by_column(self, values: Tensor, x: Tensor) -> Tensor:
        ordinary, outlying = values[:, None].chunk(2)
        return torch.where(self.outliers, outlying, ordinary).reshape(x.shape)

    def _is_fusible(self) -> bool:
        return self.outliers.numel() == 0 and super()._is_fusible()


class LogQuantizer(Quantizer):
    """Logarithmic quantizer for values in [0, 1]: ``code = round(-k log2(x / s))``, ``s 2^(-code/k)``.

    k = 1 is log2 (FQ-ViT), k = 2 is log-sqrt2 (RepQ-ViT). The last of the 2^b codes stands for zero, so
    that b bits mean 2^b values; scheme ``log-sqrt2-plus-zero`` has all 2^b codes and an exact zero
    besides, as RepQ-ViT's released code (2^b + 1 values).
    """

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.steps_per_octave = 1 if spec.scheme == "log2" else 2
        self.zero_code = 2**spec.bits - (spec.scheme != "log-sqrt2-plus-zero")

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the largest value, ``s = high`` (shape [groups]); ``low`` is taken to be zero."""
        self._require_finite(low, high)
        self.scale = high.detach().float().reshape(-1).clamp_min(TINY)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the nearest level in the logarithmic sense; 0 maps to 0."""
        k, scale = self.steps_per_octave, self._along_axis(x)
        # Minus the codes. log2(0) is -inf, which is beyond the last code, and exp2(-inf) is 0.
        exponents = torch.log2(x / scale).mul_(k).round_().clamp_max_(0)
        torch.threshold_(exponents, -self.zero_code, -torch.inf)
        return exponents.div_(k).exp2_().mul_(scale)

    def _along_axis(self, x: Tensor) -> Tensor:
        if self.scale.numel() == 1:
            return self.scale
        shape = [1] * x.dim()
        shape[self.axis or 0] = -1
        return self.scale.view(shape)


class LogIntSoftmaxQuantizer(Quantizer):
    """Log-Int-Softmax (FQ-ViT, section 3.3): codes of attention weights from integer ratios.

    ``r = round(sum exp / exp_i) = round(1 / p)``, ``code = floor(log2 r)``, one more where
    ``r >= 1.5 * 2^floor``; the value is ``2^-code``, so the product with the values is a shift. The last of
    the 2^b codes stands for zero. The scale is 1: a softmax needs no calibration.
    """

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Mark as calibrated; the range of a softmax is known."""
        self._require_finite(low, high)
        self.scale = torch.ones_like(high).reshape(-1)[:1].float()

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


class TwinSoftmaxQuantizer(Quantizer):
    """Twin uniform quantizer after softmax (PTQ4ViT): a fine grid up to ``s``, a coarse one up to 1.

    With h = 2^(b-1) - 1 the fine step is s / h and the coarse step 1 / h, s = 2^-i, so the steps differ
    by a shift. One flag bit tells the grid: each value takes the grid that is nearer, which is the
    paper's exclusive form with a monotone border. Scheme ``twin-softmax-summed`` adds both halves as the
    released code does, which moves every value by about s.
    """

    SPLITS = 20

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.last_code = 2 ** (spec.bits - 1) - 1
        self.summed = spec.scheme == "twin-softmax-summed"

    def set_split(self, index: Tensor) -> None:
        """Set ``s = 2^-index`` (index: integer tensor of shape [1], 0 .. 19)."""
        self.scale = torch.exp2(-index.float()).reshape(-1)

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Take the middle of the splits; a search with `set_split` follows."""
        self._require_finite(low, high)
        self.set_split(torch.full_like(high, self.SPLITS // 4).reshape(-1)[:1])

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return x on the union of both grids (or their sum)."""
        h, split = self.last_code, self.scale
        zero = torch.zeros_like(split)
        if self.summed:
            high = torch.round(x.clamp(split, torch.ones_like(split)) * h) / h
            low = torch.round(x.clamp(zero, split) * (h / split)) * (split / h)
            return high + low
        fine = fake_quantize(x, split / h, zero, (0, h))
        coarse = fake_quantize(x, torch.ones_like(split) / h, zero, (0, h))
        # The first coarse level above the fine grid; half-way to it the coarse grid takes over.
        next_level = (torch.floor(split * h) + 1) / h
        return choose(x.detach().clone().lt_((split + next_level) / 2), fine, coarse)


class TwinGeluQuantizer(Quantizer):
    """Twin uniform quantizer after GELU (PTQ4ViT): one step per sign.

    The negative step 0.16997 / 2^(b-1) is fixed (codes -2^(b-1) .. 0), the positive step ``scale`` is
    calibrated (codes 0 .. 2^(b-1) - 1): 2^b values in all. The paper also asks that the positive step be
    a power-of-two multiple of the negative one; like the released code this is not enforced.
    """

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover [0, high] with the positive codes (shape [1])."""
        self._require_finite(low, high)
        step = high.reshape(-1) / (2 ** (self.spec.bits - 1) - 0.5)
        self.scale = step.detach().float().clamp_min(TINY)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return x with its positive and negative part on their own grids."""
        half = 2 ** (self.spec.bits - 1)
        zero = torch.zeros_like(self.scale)
        negative_step = torch.full_like(self.scale, GELU_MINIMUM / half)
        positive = fake_quantize(x, self.scale, zero, (0, half - 1))
        negative = fake_quantize(x, negative_step, zero, (-half, 0))
        return positive.add_(negative) if not x.requires_grad else positive + negative


_FORMS: dict[str, type[Quantizer]] = {
    "uniform": UniformQuantizer,
    "dual-uniform": DualUniformQuantizer,
    "power-of-two-factor": UniformQuantizer,
    "log2": LogQuantizer,
    "log-sqrt2": LogQuantizer,
    "log-sqrt2-plus-zero": LogQuantizer,
    "log-int-softmax": LogIntSoftmaxQuantizer,
    "twin-softmax": TwinSoftmaxQuantizer,
    "twin-softmax-summed": TwinSoftmaxQuantizer,
    "twin-gelu": TwinGeluQuantizer,
}


def build_quantizer(spec: TensorSpec, site: str, axis: int | None = None) -> Quantizer:
    """Return the quantizer a spec asks for.

    Args:
        spec: the site's entry in the bit table.
        site: name of the site, for messages.
        axis: dimension with one scale per entry if the granularity is ``channel`` or ``head``.
    """
    grouped = spec.granularity in ("channel", "projection", "head")
    return _FORMS[spec.scheme](spec, site, axis if grouped else None)

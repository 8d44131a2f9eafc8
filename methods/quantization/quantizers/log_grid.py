"""Logarithmic quantizers whose base is calibrated: free, or rational as AdaLog's, also shifted for GELU."""

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import (
    TINY,
    spread,
    straight_through,
)
from vit_ptq_bench.methods.quantization.quantizers.base import Domain, Quantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form
from vit_ptq_bench.methods.quantization.quantizers.twin import GELU_MINIMUM

ROOTS = 37
"""AdaLog's r: bases are powers of 2^(1/37)."""

SMALLEST_Q, LARGEST_Q = 10, 138
"""AdaLog's bases are searched from 2^(10/37) to 2^(138/37)."""

TABLE_TOP = 255
"""The table of roots holds whole numbers of one byte, ``round(255 2^(-i/37))``: 255 down to 130, all
different, off by at most 0.4 %, a fiftieth of the finest step. What 255 stands for goes into the scale."""


class LogGridQuantizer(Quantizer):
    """Base: powers of a calibrated base below a calibrated largest value, and zero.

    The last of the 2^b codes stands for zero, so that b bits mean 2^b values. Values below zero become zero,
    those above the largest value become that. Gradients pass straight through.

    Attributes:
        octaves: powers of two between the largest and the smallest level where `set_range` alone chooses.
    """

    domain: ClassVar[Domain] = "nonnegative"
    levels_scale: ClassVar[bool] = True
    octaves: ClassVar[float] = 9.0

    @property
    def zero_code(self) -> int:
        """The code that stands for zero."""
        return (1 << self.spec.bits) - 1

    @property
    def groups(self) -> int | None:
        return self.scale.numel()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the largest value, ``s = high + shift`` (shape [groups]); ``low`` is taken to be zero.

        The base follows from the bits: 2^b - 2 steps span `octaves`. Nine are 1 to 1/512, where an attention
        map of some hundred tokens has its mass: k = 1.56 at 4 bits and 0.67 at 3, near what the error of
        attention x value chooses on ViT-Tiny (1.5, 0.75). Behind GELU, where the largest entries have the
        squared error, six: k = 2.3 at 4 bits and 1 at 3. A search does better.
        """
        self._require_finite(low, high)
        scale = (high.detach().float() + self.shift).reshape(-1).clamp_min(TINY)
        steps = (2**self.spec.bits - 2) / self.octaves
        self.set_levels(scale, torch.full_like(scale, steps))

    @abstractmethod
    def set_levels(self, scale: Tensor, steps_per_octave: Tensor) -> None:
        """Set the largest level s (> 0, after the shift) and the steps per octave k (> 0), both [groups].

        Raises:
            MethodError: a value is not finite.
        """

    @abstractmethod
    def powers(self) -> Tensor:
        """Return the level of each code but the last, in units of the scale ([groups, 2^b - 1], float64)."""

    @abstractmethod
    def steps(self) -> Tensor:
        """Return the steps per octave, float32 [groups]."""

    def levels(self) -> Tensor:
        """Return the value of each code, the largest first, that of zero last (float32, [groups, 2^b])."""
        powers = self.powers() * self.scale[:, None].double()
        return F.pad(powers, (0, 1)).sub_(self.shift).float()

    def reach(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the code of zero stands for, and half a step above the largest level."""
        scale, steps = (spread(values, x, self.axis) for values in (self.scale, self.steps()))
        shift = self.shift_at(x)
        return torch.zeros_like(scale) - shift, scale * torch.exp2(0.5 / steps) - shift

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the nearest level in the logarithmic sense; NaN stays NaN."""
        if torch.is_grad_enabled() and x.requires_grad:
            return straight_through(x, self.fake_quantize(x.detach()))
        scale, steps = (spread(values, x, self.axis) for values in (self.scale, self.steps()))
        ratio = (x + self.shift_at(x)).clamp_min_(0).div_(scale)
        # log2(0) is -inf: beyond the last code.
        codes = ratio.log2_().mul_(-steps).round_().clamp_(0, self.zero_code).nan_to_num_(nan=-1.0)
        # To powers of two of whole numbers the processor takes ten times as long as to a look-up.
        table = F.pad(self.levels(), (1, 0), value=torch.nan).to(x.dtype)
        rows = torch.arange(len(table), dtype=torch.int32, device=x.device) * table.shape[1] + 1
        index = codes.int().add_(spread(rows, x, self.axis))
        return table.flatten().index_select(0, index.reshape(-1)).view(x.shape)

    def _one_per_scale(self, values: Tensor, what: str) -> str | None:
        if self.spec.is_float or not self.scale.numel():
            return None
        if self.scale.dim() != 1 or values.shape != self.scale.shape:
            return f"scales {tuple(self.scale.shape)} with {what} {tuple(values.shape)}"
        return None


@register_form("log")
class FreeLogQuantizer(LogGridQuantizer):
    """Free base: ``code = round(-k log2(x / s))``, ``s 2^(-code/k)``, k any positive number.

    Buffers ``scale`` (s) and ``steps_per_octave`` (k), float32 [groups]. k = 1 is log2, k = 2 log-sqrt2. At
    few bits the best k for an attention map is below 2 and depends on the map.
    """

    steps_per_octave: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.register_buffer("steps_per_octave", torch.empty(0))

    def set_levels(self, scale: Tensor, steps_per_octave: Tensor) -> None:
        """Set s and k; see `LogGridQuantizer.set_levels`."""
        self._require_finite(scale, steps_per_octave)
        self.scale = scale.detach().float().reshape(-1).contiguous()
        self.steps_per_octave = steps_per_octave.detach().float().reshape(-1).contiguous()

    def problem(self) -> str | None:
        """Also of the steps per octave, one for each scale, positive and finite."""
        k = self.steps_per_octave
        found = super().problem() or self._one_per_scale(k, "steps per octave")
        if found or self.spec.is_float or not self.scale.numel():
            return found
        if k.dtype != torch.float32:
            return f"steps per octave of type {k.dtype}, not float32"
        if not bool((torch.isfinite(k) & (k > 0)).all()):
            return "steps per octave that are no positive numbers"
        return None

    def powers(self) -> Tensor:
        codes = torch.arange(self.zero_code, device=self.scale.device)
        return torch.exp2(-codes / self.steps_per_octave[:, None].double())

    def steps(self) -> Tensor:
        return self.steps_per_octave


@register_form("shifted-log")
class ShiftedLogQuantizer(FreeLogQuantizer):
    """`FreeLogQuantizer` behind GELU: the grid lies on ``y = x + 0.16997 >= 0``, 0.16997 is GELU's minimum.

    The levels are those of y minus the constant, which folds into the bias of the layer behind when the
    model is deployed: ``W (y^ - c) + b = W y^ + (b - c W 1)``.
    """

    domain: ClassVar[Domain] = "gelu"
    shift: ClassVar[float] = GELU_MINIMUM
    octaves: ClassVar[float] = 6.0


@register_form("adalog")
class AdaLogQuantizer(LogGridQuantizer):
    """Rational base 2^(q/37): ``code = round(-log2(x / s) 37 / q)``, levels by shift and table (AdaLog).

    ``s 2^-floor(code q / 37) T[(code q) mod 37]``, T the roots ``2^(-i/37)`` in one byte (`TABLE_TOP`), so
    that an integer engine multiplies by a byte and shifts. Buffers ``scale`` (s), float32, and ``q``,
    int32, [groups]. Source: Wu et al., ECCV 2024.
    """

    q: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.register_buffer("q", torch.empty(0, dtype=torch.int32))

    def set_levels(self, scale: Tensor, steps_per_octave: Tensor) -> None:
        """Set s and the nearest of AdaLog's bases; see `LogGridQuantizer.set_levels`."""
        self._require_finite(scale, steps_per_octave)
        q = (ROOTS / steps_per_octave.detach().float()).round()
        self.set_base(scale, q.clamp(SMALLEST_Q, LARGEST_Q))

    def set_base(self, scale: Tensor, q: Tensor) -> None:
        """Set s (> 0, float) and q (whole, 10 to 138), both [groups]."""
        self._require_finite(scale, q)
        self.scale = scale.detach().float().reshape(-1).contiguous()
        self.q = q.detach().to(torch.int32).reshape(-1).contiguous()

    def problem(self) -> str | None:
        """Also of q, one for each scale, within AdaLog's range."""
        found = super().problem() or self._one_per_scale(self.q, "numbers q of the base")
        if found or self.spec.is_float or not self.scale.numel():
            return found
        if self.q.dtype != torch.int32:
            return f"numbers q of the base of type {self.q.dtype}, not int32"
        if not bool(((self.q >= SMALLEST_Q) & (self.q <= LARGEST_Q)).all()):
            return f"numbers q of the base outside {SMALLEST_Q} to {LARGEST_Q}"
        return None

    def powers(self) -> Tensor:
        steps = torch.arange(self.zero_code, device=self.scale.device) * self.q[:, None]
        roots = torch.exp2(-(steps % ROOTS).double() / ROOTS).mul_(TABLE_TOP).round_()
        return roots.div_(TABLE_TOP).mul_(torch.exp2(-(steps // ROOTS).double()))

    def steps(self) -> Tensor:
        return ROOTS / self.q


@register_form("shifted-adalog")
class ShiftedAdaLogQuantizer(AdaLogQuantizer):
    """`AdaLogQuantizer` on ``y = x + 0.16997``, behind GELU; the shift folds as `ShiftedLogQuantizer`'s."""

    domain: ClassVar[Domain] = "gelu"
    shift: ClassVar[float] = GELU_MINIMUM
    octaves: ClassVar[float] = 6.0

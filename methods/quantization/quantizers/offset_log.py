"""The logarithmic quantizer behind GELU whose distance from zero is calibrated."""

from typing import ClassVar

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY, spread
from vit_ptq_bench.methods.quantization.quantizers.base import Domain
from vit_ptq_bench.methods.quantization.quantizers.log_grid import FreeLogQuantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form
from vit_ptq_bench.methods.quantization.quantizers.twin import GELU_MINIMUM

USUAL_OFFSET = 0.4
"""Where `OffsetLogQuantizer.set_range` alone chooses: what the squared error chooses on ViT-Tiny."""


@register_form("offset-log")
class OffsetLogQuantizer(FreeLogQuantizer):
    """The grid lies on ``y = x + c``: all 2^b codes are powers, ``s 2^(-code/k) - c``, none stands for zero.

    Buffers ``scale`` (s), ``steps_per_octave`` (k) and ``offset`` (c, above GELU's minimum 0.16997), float32
    [groups]. The larger c, the nearer the grid comes to a uniform one: where most values are a little below
    zero, `ShiftedLogQuantizer`'s levels lie closest where GELU has next to no values, at its minimum. c
    folds into the bias of the layer behind: ``W (y^ - c) + b = W y^ + (b - c W 1)``. Source: this project.
    """

    domain: ClassVar[Domain] = "gelu"
    offset: Tensor

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.register_buffer("offset", torch.empty(0))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Span GELU's minimum to ``high`` ([groups]) at `USUAL_OFFSET`; ``low`` is taken to be the minimum.

        A search does better.
        """
        self._require_finite(low, high)
        offset = torch.full_like(high.detach().float().reshape(-1), USUAL_OFFSET)
        scale = high.detach().float().reshape(-1).clamp_min(TINY) + offset
        octaves = (scale / (offset - GELU_MINIMUM)).log2()
        self.set_offset(offset)
        self.set_levels(scale, (2**self.spec.bits - 1) / octaves)

    def set_levels(self, scale: Tensor, steps_per_octave: Tensor) -> None:
        """Set s and k, and c to `USUAL_OFFSET` where it has not been set for as many groups."""
        super().set_levels(scale, steps_per_octave)
        if self.offset.shape != self.scale.shape:
            self.offset = torch.full_like(self.scale, USUAL_OFFSET)

    def set_offset(self, offset: Tensor) -> None:
        """Set c ([groups]).

        Raises:
            MethodError: a value is not finite.
        """
        self._require_finite(offset)
        self.offset = offset.detach().float().reshape(-1).contiguous()

    def shift_at(self, x: Tensor) -> Tensor:
        return spread(self.offset, x, self.axis)

    def reach(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Half a step beyond the smallest and the largest power."""
        scale, steps = (spread(values, x, self.axis) for values in (self.scale, self.steps()))
        shift, last = self.shift_at(x), 2**self.spec.bits - 1
        low, high = torch.exp2(-(last + 0.5) / steps), torch.exp2(0.5 / steps)
        return scale * low - shift, scale * high - shift

    def problem(self) -> str | None:
        """Also of the offsets, one for each scale, above GELU's minimum and finite."""
        c = self.offset
        found = super().problem() or self._one_per_scale(c, "offsets")
        if found or self.spec.is_float or not self.scale.numel():
            return found
        if c.dtype != torch.float32:
            return f"offsets of type {c.dtype}, not float32"
        if not bool((torch.isfinite(c) & (c > GELU_MINIMUM)).all()):
            return f"offsets that are not numbers above {GELU_MINIMUM}"
        return None

    def levels(self) -> Tensor:
        codes = torch.arange(2**self.spec.bits, device=self.scale.device)
        powers = torch.exp2(-codes / self.steps_per_octave[:, None].double())
        return (powers * self.scale[:, None].double() - self.offset[:, None].double()).float()

"""Twin uniform quantizers: two grids for one tensor (PTQ4ViT)."""

from typing import ClassVar

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.bits import TensorSpec
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY, choose, fake_quantize
from vit_ptq_bench.methods.quantization.quantizers.base import Domain, Quantizer
from vit_ptq_bench.methods.quantization.quantizers.registry import register_form

GELU_MINIMUM = 0.16997124254703522
"""Absolute value of the minimum of GELU: the range of the negative side after it."""


@register_form("twin-softmax", "twin-softmax-summed")
class TwinSoftmaxQuantizer(Quantizer):
    """Twin uniform quantizer after softmax (PTQ4ViT): a fine grid up to ``s``, a coarse one up to 1.

    With h = 2^(b-1) - 1 the fine step is s / h and the coarse step 1 / h, s = 2^-i, so the steps differ
    by a shift. One flag bit tells the grid: each value takes the grid that is nearer, which is the
    paper's exclusive form with a monotone border. Scheme ``twin-softmax-summed`` adds both halves as the
    released code does, which moves every value by about s.
    """

    domain: ClassVar[Domain] = "nonnegative"
    SPLITS: ClassVar[int] = 20

    def __init__(self, spec: TensorSpec, site: str, axis: int | None = None) -> None:
        super().__init__(spec, site, axis)
        self.last_code: int = 2 ** (spec.bits - 1) - 1
        self.summed = spec.scheme == "twin-softmax-summed"

    def set_split(self, index: Tensor) -> None:
        """Set ``s = 2^-index`` (index: integer tensor of shape [1], 0 .. 19)."""
        self.scale = torch.exp2(-index.float()).reshape(-1)

    @property
    def groups(self) -> int | None:
        return self.scale.numel()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Take the middle of the splits; a search with `set_split` follows."""
        self._require_finite(low, high)
        self.set_split(torch.full_like(high, self.SPLITS // 4).reshape(-1)[:1])

    def problem(self) -> str | None:
        """Nor does the fine grid reach beyond 1."""
        found = super().problem()
        return found or ("a split above 1" if bool((self.scale > 1).any()) else None)

    def reach(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Zero to one: a softmax gives nothing else, and the coarse grid ends there."""
        return torch.zeros_like(self.scale), torch.ones_like(self.scale)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return x on the union of both grids (or their sum)."""
        h, split = self.last_code, self.scale
        zero = torch.zeros_like(split)
        if self.summed:
            # Not `clamp` by tensors: of two of the same values onnxscript (0.7) writes no valid graph.
            high = torch.round(torch.where(x > split, x, split).clamp(max=1) * h) / h
            low = torch.round(torch.where(x < split, x, split).clamp(min=0) * (h / split))
            low = low * (split / h)
            return high + low
        fine = fake_quantize(x, split / h, zero, (0, h))
        coarse = fake_quantize(x, torch.ones_like(split) / h, zero, (0, h))
        # The first coarse level above the fine grid; half-way to it the coarse grid takes over.
        next_level = (torch.floor(split * h) + 1) / h
        return choose(x.detach().clone().lt_((split + next_level) / 2), fine, coarse)


@register_form("twin-gelu")
class TwinGeluQuantizer(Quantizer):
    """Twin uniform quantizer after GELU (PTQ4ViT): one step per sign.

    The negative step 0.16997 / 2^(b-1) is fixed (codes -2^(b-1) .. 0), the positive step ``scale`` is
    calibrated (codes 0 .. 2^(b-1) - 1): 2^b values in all. The paper also asks that the positive step be
    a power-of-two multiple of the negative one; like the released code this is not enforced.
    """

    domain: ClassVar[Domain] = "gelu"

    @property
    def groups(self) -> int | None:
        return self.scale.numel()

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover [0, high] with the positive codes (shape [1])."""
        self._require_finite(low, high)
        step = high.reshape(-1) / (2 ** (self.spec.bits - 1) - 0.5)
        self.scale = step.detach().float().clamp_min(TINY)

    def reach(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Half a step beyond the outermost codes of either sign."""
        half = 2 ** (self.spec.bits - 1)
        low = torch.full_like(self.scale, -GELU_MINIMUM * (half + 0.5) / half)
        return low, self.scale * (half - 0.5)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return x with its positive and negative part on their own grids."""
        half = 2 ** (self.spec.bits - 1)
        zero = torch.zeros_like(self.scale)
        negative_step = torch.full_like(self.scale, GELU_MINIMUM / half)
        positive = fake_quantize(x, self.scale, zero, (0, half - 1))
        negative = fake_quantize(x, negative_step, zero, (-half, 0))
        return positive.add_(negative) if not x.requires_grad else positive + negative

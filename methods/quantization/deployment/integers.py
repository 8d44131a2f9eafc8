"""Integer types that a uniform quantizer's codes fit, and why others have none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import (
    DualUniformQuantizer,
    UniformQuantizer,
)

HIGHEST = {"uint4": 15, "uint8": 255, "uint16": 65535}
"""Name of an unsigned integer type -> its highest value."""

NEAREST = "uniform"
"""The form with an operator that stands nearest to any other."""


OUTSIDE = "its zero points do not fit"
"""How the reason begins why a grid whose range lies far from 0 has no operator."""


@dataclass(frozen=True)
class IntegerGrid:
    """A uniform grid whose codes and zero points are numbers of one unsigned integer type.

    Attributes:
        integers: name of the type.
        scale: float32, [groups].
        zero_point: int64, [groups].
        low, high: lowest and highest code.
        offset: what was added to the quantizer's own codes.
    """

    integers: str
    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    offset: int

    @property
    def clips(self) -> bool:
        """Whether the type holds codes that the grid has not, so that the range must be kept otherwise."""
        return (self.low, self.high) != (0, HIGHEST[self.integers])


def integer_grid(quantizer: Quantizer, types: tuple[str, ...]) -> IntegerGrid | str:
    """Return the grid of a quantizer in the first integer type that holds it, or why there is none.

    Args:
        quantizer: calibrated.
        types: names of `HIGHEST`, the narrowest first.
    """
    spec = quantizer.spec
    if not isinstance(quantizer, UniformQuantizer):
        return f"the form {spec.scheme!r} has no operator; the nearest that has one: {NEAREST!r}"
    if spec.dynamic:
        return (
            "its range is taken from each tensor; the nearest with an operator: static, per tensor"
        )
    if isinstance(quantizer, DualUniformQuantizer) and quantizer.outliers.numel():
        return f"two scales a row; the nearest with an operator: {NEAREST!r}, one scale a row"
    zero = quantizer.zero_point
    if zero.dtype != torch.int32:
        return "its zero points are no whole numbers"
    zero = zero.long()
    low, high = quantizer.code_range
    lowest, highest = min(low, int(zero.min())), max(high, int(zero.max()))
    for name in types:
        if highest - lowest > HIGHEST[name]:
            continue
        # Codes begin at 0 unless zero points lie below: a type of the grid's size keeps the range itself.
        return IntegerGrid(
            name, quantizer.scale, zero - lowest, low - lowest, high - lowest, -lowest
        )
    return f"{OUTSIDE} {types[-1]}; the nearest with an operator: a range that holds 0"

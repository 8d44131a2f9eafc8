"""Quantization in the operators of ONNX, of the same values in torch.

A traced quantizer is a handful of roundings and products that no runtime knows for what it is. While a graph
is exported, QuantizeLinear, Clip and DequantizeLinear stand in their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CODES = {"uint4": torch.uint8, "uint8": torch.uint8, "uint16": torch.int32}
"""Integer type in a file -> the type that its values have in torch, which has no operators for the others."""

ONNX_TYPES = {"uint4": 21, "uint8": 2, "uint16": 4}
"""Integer type -> its number in ONNX's ``TensorProto.DataType``."""


CLIPPED = ("uint8",)
"""Integer types whose codes a Clip can keep in a range: ONNX Runtime (1.32) has none of 16 bits."""


def quantize_dequantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int,
    code_range: tuple[int, int],
    integers: str,
    clips: bool,
) -> Tensor:
    """Return ``s (clip(round(x / s) + z, low, high) - z)``, rounded half to even.

    Args:
        x: float32, any shape.
        scale, zero_point: float32 and `CODES`, [1] or one for each entry of the axis.
        axis: of ``x``; of no meaning where there is one scale.
        code_range: lowest and highest code.
        integers: name of the integer type in a file.
        clips: whether the integer type is wider than the range.
    """
    if torch.onnx.is_in_onnx_export():
        zero = _as_type(zero_point, integers)
        clips_codes = clips and integers in CLIPPED
        if clips and not clips_codes:
            x = _bounded(x, scale, zero_point, axis, code_range)
        codes = _symbolic(
            "QuantizeLinear", (x, _plain(scale), _plain(zero)), x, integers, axis=axis
        )
        if clips_codes:
            ends = (torch.tensor(end, dtype=CODES[integers]) for end in code_range)
            codes = _symbolic(
                "Clip", (codes, *(_as_type(end, integers) for end in ends)), x, integers
            )
        if scale.numel() > 1:
            # ONNX Runtime (1.32) makes one product of integers of two operators in front of a product,
            # and does not run it where they have several scales: scales that stand apart it leaves alone.
            ones = torch.ones_like(scale)
            apart = _symbolic("DequantizeLinear", (codes, ones, zero), x, None, axis=axis)
            return apart * _along(scale, x, axis)
        return _symbolic(
            "DequantizeLinear", (codes, _plain(scale), _plain(zero)), x, None, axis=axis
        )
    s, z = (_along(values, x, axis) for values in (scale, zero_point.float()))
    return (torch.round(x / s) + z).clamp(*code_range).sub(z).mul(s)


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int, integers: str
) -> Tensor:
    """Return ``s (codes - z)``, float32, or that in float64 for a scale in float64.

    Args:
        codes: `CODES`, any shape.
        scale, zero_point: floating point and `CODES`, [1] or one for each entry of the axis.
        axis: of ``codes``.
        integers: name of the integer type in a file.
    """
    if torch.onnx.is_in_onnx_export():
        stored, zero = _as_type(codes, integers), _as_type(zero_point, integers)
        operands = (stored, _plain(scale.float()), _plain(zero))
        return _symbolic("DequantizeLinear", operands, codes, None, axis=axis).to(scale.dtype)
    s, z = (_along(values, codes, axis) for values in (scale, zero_point.float()))
    return codes.float().sub(z).mul(s.float()).to(s.dtype)


def _bounded(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, code_range: tuple[int, int]
) -> Tensor:
    """``x`` between the numbers of the lowest and the highest code, so that no other code comes of it.

    The codes are those that a clip of them would give: what lies beyond an end becomes the end, whose
    quotient is off its whole number by less than a hundredth (2^16 codes, 24 bits of float32).
    """
    s, z = (_along(values, x, axis) for values in (scale, zero_point.float()))
    low, high = ((end - z) * s for end in code_range)
    return torch.minimum(torch.maximum(x, low), high)


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """One value for each entry of an axis of ``x``, in a shape that meets it; a single one meets all."""
    if values.numel() == 1:
        return values
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.view(shape)


def _plain(values: Tensor) -> Tensor:
    """A single value without a dimension, as the operators ask for."""
    return values.reshape(()) if values.numel() == 1 else values


def _as_type(values: Tensor, integers: str) -> Tensor:
    """The same numbers in the integer type of the file."""
    return _symbolic("Cast", (values,), values, integers, to=ONNX_TYPES[integers])


def _symbolic(
    operator: str,
    operands: tuple[Tensor, ...],
    like: Tensor,
    integers: str | None,
    **attributes: Any,
) -> Tensor:
    """A node of the exported graph whose result has the shape of ``like``."""
    result = torch.float32 if integers is None else ONNX_TYPES[integers]
    node: Tensor = torch.onnx.ops.symbolic(
        operator, operands, attributes, dtype=result, shape=like.shape
    )
    return node

"""Files that compute in float64: a runtime then gives the predictions of the simulation, to the last image.

What a runtime adds in another order than torch differs in the last bits, and a value within these bits of the
border between two codes falls to its other side. In float32 some values of every image lie as near as that,
in float64 none do. QuantizeLinear takes no float64, so that activations are quantized by the arithmetic
that the simulation has; weights are stored as integers all the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from scipy.special import erfcx
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.model.layers import QuantConv2d
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Output

FLOAT32, FLOAT64 = PRECISIONS = ("float32", "float64")
"""What a file can compute in: as runtimes are fast, or so that ONNX Runtime takes the simulation's codes."""

MIDDLE = 2.0
"""Argument of the error function in the middle of what its polynomial is fitted over, zero to infinity."""

DEGREE = 22
"""Of the polynomial, with which the error function is right to 2e-14."""

LACKING = {"Acos", "Asin", "Atan", "Conv", "Erf", "Gelu", "Tan"}
"""Operators of ONNX that its runtime lacks in float64, of those that forms of quantizers and networks use."""


class InDouble(nn.Module):
    """A copy of a module that computes in float64."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).double()

    def forward(self, images: Tensor) -> Output:
        """Return what the module says, float32, of ``images`` [b, 3, H, W]."""
        output: Output = self.module(images.double())
        if isinstance(output, Tensor):
            return output.float()
        return tuple(part.float() for part in output)


def without_convolutions(model: QuantizedModel) -> None:
    """Let a model's convolutions be products of matrices: runtimes have none in float64.

    Raises:
        MethodError: a convolution has no matrix form.
    """
    for operation in model.operations:
        if isinstance(operation, QuantConv2d):
            operation.multiply_columns()


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return torch's operators that ONNX Runtime does not have in float64 -> what is written for them."""
    from onnxscript import opset18 as op

    def erf(self: Any) -> Any:
        size = op.Abs(self)
        place = op.Div(op.Sub(size, _number(MIDDLE)), op.Add(size, _number(MIDDLE)))
        highest, *others = reversed(erfcx_polynomial())
        scaled = op.Add(op.Mul(place, _number(highest)), _number(others[0]))
        for coefficient in others[1:]:
            scaled = op.Add(op.Mul(scaled, place), _number(coefficient))
        rest = op.Mul(op.Exp(op.Neg(op.Mul(size, size))), scaled)
        return op.Mul(op.Sign(self), op.Sub(_number(1.0), rest))

    def gelu(self: Any, approximate: str = "none") -> Any:
        if approximate == "tanh":
            cubed = op.Mul(op.Mul(op.Mul(self, self), self), _number(0.044715))
            share = op.Tanh(op.Mul(op.Add(self, cubed), _number((2 / math.pi) ** 0.5)))
        else:
            share = erf(op.Mul(self, _number(0.5**0.5)))
        return op.Mul(op.Mul(self, op.Add(share, _number(1.0))), _number(0.5))

    def _number(value: float) -> Any:
        return op.Constant(value=_tensor(value))

    return {torch.ops.aten.gelu.default: gelu, torch.ops.aten.erf.default: erf}


def require_double(operators: Iterable[str]) -> None:
    """Refuse operators of a graph that ONNX Runtime (1.32) does not have in float64.

    Raises:
        MethodError: there are some; they are named.
    """
    found = sorted(LACKING & set(operators))
    if found:
        raise MethodError(
            f"the model computes {', '.join(found)}, which ONNX Runtime does not have in float64; write the "
            "file in float32"
        )


def _tensor(value: float) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor("", TensorProto.DOUBLE, (), [value])


@cache
def erfcx_polynomial() -> tuple[float, ...]:
    """Return coefficients, the lowest first, of ``exp(z^2) (1 - erf(z))`` in ``t = (z - k) / (z + k)``.

    With z from zero to infinity t goes from -1 to 1, and the function of it is smooth.
    """

    def function(place: np.ndarray) -> np.ndarray:
        values: np.ndarray = erfcx(MIDDLE * (1 + place) / (1 - place))
        return values

    fitted = Chebyshev.interpolate(function, DEGREE)
    return tuple(map(float, fitted.convert(kind=Polynomial).coef))

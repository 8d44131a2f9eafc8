"""The integer-exact reference: products of integers, of a model whose every site is uniform.

The sum over K of ``s_x (q_x - z_x)`` times ``s_w (q_w - z_w)`` is ``s_x s_w`` times a sum of products of
integers. Here that sum is one of integers, exact; a simulated model adds rounded products in floating point.
An operation gives the same to float rounding either way: what is simulated is what integer hardware computes.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.deployment.integers import integer_grid
from vit_ptq_bench.methods.quantization.model.layers import (
    QuantConv2d,
    QuantLinear,
    QuantMatMul,
    WeightedOperation,
)
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer

TYPES = ("uint4", "uint8", "uint16")

LARGEST_SUM = 2**31 - 1
"""Of an accumulator of 32 bits, which hardware has."""


def exact_reference(model: QuantizedModel) -> nn.Module:
    """Return a copy of a quantized model whose matrix products are products of integers.

    Args:
        model: what `Method.quantize` or `load_quantized` returned.

    Raises:
        MethodError: a site has no static uniform grid, or its scales differ along the axis that is summed
            over; it is named. A model with sites in floating point is none of integers either.
    """
    exact = copy.deepcopy(model)
    for operation in exact.operations:
        if isinstance(operation, QuantMatMul):
            _require(operation.first_quantizer, operation.second_quantizer, one_scale=False)
            fresh: nn.Module = _ExactMatMul(operation)
        elif isinstance(operation, QuantLinear | QuantConv2d):
            _require(operation.weight_quantizer, one_scale=False)
            _require(operation.input_quantizer, one_scale=True)
            fresh = (
                _ExactLinear(operation)
                if isinstance(operation, QuantLinear)
                else _ExactConv(operation)
            )
        else:
            continue  # a norm multiplies no two operands
        parent, _, child = operation.name.rpartition(".")
        setattr(exact.module.get_submodule(parent), child, fresh)
    return exact.eval()


def _require(*quantizers: Quantizer, one_scale: bool) -> None:
    for quantizer in quantizers:
        site = quantizer.site
        if quantizer.spec.is_float:
            raise MethodError(f"{site}: in floating point, so there is no product of integers")
        grid = integer_grid(quantizer, TYPES)
        if isinstance(grid, str):
            raise MethodError(f"{site}: {grid}")
        if one_scale and quantizer.groups != 1:
            raise MethodError(
                f"{site}: {quantizer.groups} scales along the axis that is summed over; integers of "
                "different scales have no sum"
            )


def integers_of(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``q - z`` of an activation, int32, and its scale in a shape that meets it.

    The rounding is the simulated one to the last bit.
    """
    uniform = cast(UniformQuantizer, quantizer)
    scale, _ = uniform.shaped(x)
    return torch.round(uniform.fake_quantize(x) / scale).to(torch.int32), scale


def stored_integers(operation: WeightedOperation) -> tuple[Tensor, Tensor]:
    """Return ``q - z`` of a frozen weight, int32 [C_out, K], and its scale, [C_out] or [1]."""
    quantizer = cast(UniformQuantizer, operation.weight_quantizer)
    assert operation.codes is not None
    codes = operation.codes.to(torch.int32) + operation.code_offset
    scale, zero = quantizer.shaped(codes)
    return (codes - zero.to(torch.int32)).flatten(1), scale.reshape(-1)


def integer_product(first: Tensor, second: Tensor) -> Tensor:
    """Return the exact product of two matrices of integers [..., N, K] x [..., K, M], float64.

    Float64 holds every whole number below 2^53: products of integers and their sums stay exact in it, and
    it has a fast matrix product, which torch's integers have not.

    Raises:
        MethodError: an accumulator of 32 bits would overflow.
    """
    total = torch.matmul(first.double(), second.double())
    if total.numel() and float(total.abs().max()) > LARGEST_SUM:
        raise MethodError("a sum of products does not fit an accumulator of 32 bits")
    return total


class _ExactLinear(nn.Module):
    """A linear layer, or a convolution as one over its patches."""

    def __init__(self, operation: QuantLinear | QuantConv2d) -> None:
        super().__init__()
        self.input_quantizer, self.bias = operation.input_quantizer, operation.bias
        self.weight, self.scale = stored_integers(operation)

    def rows(self, x: Tensor) -> Tensor:
        """Return the layer's output for rows [..., K]."""
        values, scale = integers_of(self.input_quantizer, x)
        total = integer_product(values, self.weight.t())
        output = (total * (scale.double() * self.scale.double())).float()
        return output if self.bias is None else output + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x`` [..., C_in]."""
        return self.rows(x)


class _ExactConv(_ExactLinear):
    def __init__(self, operation: QuantConv2d) -> None:
        super().__init__(operation)
        # A list hides the convolution from the module's state: its codes are this module's own by now.
        self._operation = [operation]

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output [B, C_out, H', W'] for ``x`` [B, C_in, H, W]."""
        (operation,) = self._operation
        output = self.rows(operation.columns(x)).view(len(x), -1, len(self.weight))
        height, width = operation.output_size(x.shape[-2], x.shape[-1])
        return output.transpose(1, 2).reshape(len(x), -1, height, width)


class _ExactMatMul(QuantMatMul):
    def __init__(self, operation: QuantMatMul) -> None:
        nn.Module.__init__(self)
        self.name, self.role, self.keys = operation.name, operation.role, operation.keys
        self.transposed = operation.transposed
        self.first_quantizer = operation.first_quantizer
        self.second_quantizer = operation.second_quantizer

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the product of both operands [B, heads, N, K] x [B, heads, K, M]."""
        rows, scale = integers_of(self.first_quantizer, first)
        columns, other = integers_of(self.second_quantizer, second)
        total = integer_product(rows, columns.transpose(-2, -1) if self.transposed else columns)
        return (total * (scale.double() * other.double())).float()

"""The cost of one image through a quantized model in integers: products, bit operations and bytes, by role.

A product of an integer of a bits and one of b bits is a b bit operations (additions of single bits, to the
order of them); a value in floating point counts 32, and a code that a table makes a wider number as many as
that has.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.quantization.model.hooks import watch
from vit_ptq_bench.methods.quantization.model.layers import (
    QuantLayerNorm,
    QuantMatMul,
    QuantOperation,
    WeightedOperation,
)
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer

FLOAT_BYTES = 4


@dataclass
class Cost:
    """What the operations of a role cost together.

    Attributes:
        products: multiply-accumulates of one image.
        bit_operations: products times the bits of both operands.
        bytes: of their weights, codes packed to their bits, with the parameters of all their quantizers;
            biases are not counted.
    """

    products: int = 0
    bit_operations: int = 0
    bytes: int = 0


@torch.no_grad()
def costs_by_role(model: QuantizedModel, image: Tensor) -> dict[str, dict[str, int]]:
    """Return the costs of one image: role (``qkv``, ``fc1``, ``scores``, ...) -> field of `Cost` -> number.

    Args:
        model: frozen.
        image: float32 [1, 3, H, W], on the model's device; it goes through the model once.
    """
    found: dict[str, Cost] = {}
    with ExitStack() as stack:
        for operation in model.operations:
            if isinstance(operation, QuantLayerNorm):
                continue  # a norm multiplies no two operands
            cost = found.setdefault(operation.role, Cost())
            cost.bytes += _bytes(operation)
            watch(stack, operation, _Counter(cost))
        model(image)
    return {role: asdict(cost) for role, cost in found.items()}


class _Counter:
    """Forward pre-hook of one operation; one that is called for several maps of an image adds them up."""

    def __init__(self, cost: Cost) -> None:
        self._cost = cost

    def __call__(self, operation: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(operation, QuantOperation)
        products = _products(operation, inputs)
        first, second = operation.quantizers().values()
        self._cost.products += products
        self._cost.bit_operations += products * first.operand_bits * second.operand_bits


def _products(operation: QuantOperation, inputs: tuple[Tensor, ...]) -> int:
    if isinstance(operation, QuantMatMul):
        first, second = inputs
        columns = second.shape[-2] if operation.transposed else second.shape[-1]
        return first.numel() * columns
    assert isinstance(operation, WeightedOperation)
    (x,) = inputs
    return operation.places(x) * operation.weight.numel()


def _bytes(operation: QuantOperation) -> int:
    total = sum(_parameters(quantizer) for quantizer in operation.quantizers().values())
    if not isinstance(operation, WeightedOperation):
        return total
    if operation.codes is None:
        return total + operation.weight.numel() * FLOAT_BYTES
    return total + (operation.codes.numel() * operation.weight_quantizer.spec.bits + 7) // 8


def _parameters(quantizer: Quantizer) -> int:
    if quantizer.spec.is_float:
        return 0
    return sum(buffer.numel() * buffer.element_size() for buffer in quantizer.buffers())

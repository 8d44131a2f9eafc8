"""A linear layer that makes up for a block's quantization error, beside the block (QwT)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.model.layers import WeightedOperation
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.model.structure import Segment

NAME = "correction"
"""Of the layer among the block's children; so its weight is called ``<block>.correction.weight``."""


class BlockCorrection(nn.Module):
    """Adds ``W x + b`` to a block's output, x the block's input; kept in half precision.

    The products are computed in the precision of the input: it is no quantized operation, and has no sites.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(channels, channels, dtype=torch.half))
        self.register_buffer("bias", torch.zeros(channels, dtype=torch.half))
        self.to(device)

    @torch.no_grad()
    def set(self, weight: Tensor, bias: Tensor) -> None:
        """Take ``weight`` [C, C] and ``bias`` [C] of any floating-point type."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for ``x`` [..., C]."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

    def add(self, block: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the block: its output and the correction."""
        correction: Tensor = self(inputs[0])
        return output + correction


def attach_correction(model: QuantizedModel, segment: Segment) -> BlockCorrection:
    """Give a transformer block a correction, zero at first, and return it.

    It acts whenever the block is called; the block's halves (`Segment.halves`) go by without it.

    Raises:
        MethodError: the segment is no block with a qkv layer, whose width the correction would have.
    """
    layers = [op for op in segment.operations if isinstance(op, WeightedOperation)]
    widths = [layer.weight.shape[1] for layer in layers if layer.role == "qkv"]
    if segment.kind != "block" or len(widths) != 1:
        raise MethodError(f"{segment.name}: only transformer blocks can have a correction")
    block = model.module.get_submodule(segment.name)
    correction = BlockCorrection(widths[0], model.device)
    block.add_module(NAME, correction)
    block.register_forward_hook(correction.add)
    return correction

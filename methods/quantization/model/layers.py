"""Quantized operations: linear, convolution, and the two matrix products of attention.

Each is a drop-in module that keeps the parameter names of what it replaces and asks its quantizers
before it multiplies. All share one interface, `QuantOperation`, so that a method can search the
scales of any of them with the same code.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable
from vit_ptq_bench.methods.quantization.quantizers.base import CodedQuantizer, Quantizer
from vit_ptq_bench.methods.quantization.quantizers.build import build_quantizer


class QuantOperation(nn.Module, ABC):
    """A bilinear operation ``first x second`` whose operands are quantized.

    Attributes:
        name: dotted name in the model.
        role: what it is in the network (``qkv``, ``fc1``, ... or ``scores``, ``context``).
        output_axis: dimension of the output that the second operand's channel axis maps to.
        several_maps: whether a detector applies it to several feature maps, one after the other.
    """

    name: str
    role: str
    output_axis: int = -1
    several_maps: bool = False

    @abstractmethod
    def quantizers(self) -> dict[str, Quantizer]:
        """Return site key -> quantizer, first operand first."""

    @abstractmethod
    def compute(self, first: Tensor, second: Tensor) -> Tensor:
        """Multiply two operands as they are, no quantizer involved.

        Raises:
            MethodError: the operation multiplies no two operands.
        """

    @abstractmethod
    def operands(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return both operands in full precision, given the inputs of `forward`.

        Raises:
            MethodError: the operation multiplies no two operands.
        """


class WeightedOperation(QuantOperation):
    """A layer with a weight: its second operand is the weight, quantized along dimension 0.

    Attributes:
        codes: of a frozen layer, the weight's integer codes, from 0 up.
        keeps_unrounded: whether `set_codes` keeps the weight that it replaces, to measure what was lost.
        unrounded: that weight, [C_out, ...]; None unless kept.
    """

    codes: Tensor | None
    keeps_unrounded: bool = False
    unrounded: Tensor | None = None

    def __init__(self, layer: nn.Linear | nn.Conv2d, name: str, role: str, table: BitTable) -> None:
        super().__init__()
        self.name, self.role = name, role
        # torch declares both as Tensor, although they are parameters
        self.weight = cast(nn.Parameter, layer.weight)
        self.bias = cast(nn.Parameter | None, layer.bias)
        self.register_buffer("codes", None, persistent=False)
        self.weight_quantizer = build_quantizer(
            table.of(f"{role}.weight", name), f"{name}.weight", axis=0
        )
        self.input_quantizer = build_quantizer(
            table.of(f"{role}.input", name), f"{name}.input", axis=self._input_axis()
        )

    def _input_axis(self) -> int:
        return -1

    @property
    def frozen(self) -> bool:
        """Whether the weight now holds its quantized values."""
        return self.codes is not None

    def quantizers(self) -> dict[str, Quantizer]:
        return {
            f"{self.role}.input": self.input_quantizer,
            f"{self.role}.weight": self.weight_quantizer,
        }

    def operands(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return inputs[0], self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to the quantized input with the quantized weight."""
        weight = self.weight if self.frozen else self.weight_quantizer(self.weight)
        first = self.input_quantizer(x)
        output = self.compute(first, weight)
        left_out = self._left_out(first, weight)
        return output if left_out is None else output - left_out

    def _left_out(self, first: Tensor, weight: Tensor) -> Tensor | None:
        """The product of both low-order parts, where both operands are kept in two parts (ARCQ)."""
        if not (self.input_quantizer.quantizes and self.weight_quantizer.quantizes):
            return None
        low = self.input_quantizer.low_order(first), self.weight_quantizer.low_order(weight)
        return None if low[0] is None or low[1] is None else self.product(low[0], low[1])

    @abstractmethod
    def product(self, first: Tensor, second: Tensor) -> Tensor:
        """Multiply two operands as they are, without bias."""

    @abstractmethod
    def columns(self, x: Tensor) -> Tensor:
        """Return the input ``x`` as rows [n, K] that ``weight.flatten(1)`` [C_out, K] multiplies.

        Raises:
            MethodError: the layer has no matrix form.
        """

    @abstractmethod
    def places(self, x: Tensor) -> int:
        """Return at how many places of the input ``x`` the whole weight is applied: rows of `columns`."""

    @property
    def code_offset(self) -> int:
        """Lowest code: `codes` are stored relative to it, as unsigned bytes."""
        assert isinstance(self.weight_quantizer, CodedQuantizer)
        return self.weight_quantizer.code_range[0]

    def ensure_bias(self) -> nn.Parameter:
        """Return the bias, creating a zero one where the layer has none."""
        return ensured_bias(self)

    @torch.no_grad()
    def freeze(self) -> None:
        """Quantize the weight once: keep its integer codes and put the dequantized values in place."""
        quantizer = self.weight_quantizer
        if self.frozen or not quantizer.quantizes or not isinstance(quantizer, CodedQuantizer):
            return
        self.set_codes(quantizer.quantize(self.weight))

    @torch.no_grad()
    def set_codes(self, codes: Tensor) -> None:
        """Take integer codes (one per entry) as the weight, with the quantizer's scales."""
        quantizer = self.weight_quantizer
        assert isinstance(quantizer, CodedQuantizer)
        if self.keeps_unrounded and not self.frozen:
            self.unrounded = self.weight.detach().clone()
        codes = codes.view(self.weight.shape)
        self.codes = (codes - self.code_offset).to(torch.uint8)
        self.weight = nn.Parameter(quantizer.dequantize(codes), requires_grad=False)


def ensured_bias(layer: WeightedOperation | nn.Linear | nn.Conv2d) -> nn.Parameter:
    """Return the bias of a layer, creating a zero one where it has none."""
    if layer.bias is None:
        zeros = layer.weight.new_zeros(layer.weight.shape[0])
        layer.bias = nn.Parameter(zeros, requires_grad=False)
    return cast(nn.Parameter, layer.bias)


class QuantLinear(WeightedOperation):
    """`nn.Linear` with a quantized input [..., C_in] and weight [C_out, C_in]."""

    def columns(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])

    def places(self, x: Tensor) -> int:
        return x.numel() // x.shape[-1]

    def compute(self, first: Tensor, second: Tensor) -> Tensor:
        return F.linear(first, second, self.bias)

    def product(self, first: Tensor, second: Tensor) -> Tensor:
        return F.linear(first, second)


class QuantConv2d(WeightedOperation):
    """`nn.Conv2d` with a quantized input [B, C_in, H, W] and weight [C_out, C_in, kH, kW]."""

    output_axis = 1

    def __init__(self, layer: nn.Conv2d, name: str, role: str, table: BitTable) -> None:
        super().__init__(layer, name, role, table)
        self._convolve: Callable[..., Tensor] = layer._conv_forward
        self._geometry = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        self._plain = layer.groups == 1 and layer.padding_mode == "zeros"

    def _input_axis(self) -> int:
        return 1

    def columns(self, x: Tensor) -> Tensor:
        size, dilation, padding, stride = self._geometry
        if not self._plain or isinstance(padding, str):
            raise MethodError(
                f"{self.name}: a grouped or reflecting convolution has no matrix form"
            )
        return F.unfold(x, size, dilation, padding, stride).transpose(1, 2).flatten(0, 1)

    def multiply_columns(self) -> None:
        """Compute as a product of matrices from now on, for runtimes that lack the convolution.

        Raises:
            MethodError: the layer has no matrix form.
        """
        self.columns(torch.zeros(1, self.weight.shape[1], *self._geometry[0]))  # or it has none
        self._convolve = self._product_of_columns

    def _product_of_columns(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output = F.linear(self.columns(x), weight.flatten(1), bias)
        height, width = self.output_size(x.shape[-2], x.shape[-1])
        return output.view(x.shape[0], height, width, -1).permute(0, 3, 1, 2)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output for an input of this size."""
        size, dilation, padding, stride = self._geometry
        ends = [
            (side + 2 * int(padding[i]) - dilation[i] * (size[i] - 1) - 1) // stride[i] + 1
            for i, side in enumerate((height, width))
        ]
        return ends[0], ends[1]

    def places(self, x: Tensor) -> int:
        height, width = self.output_size(x.shape[-2], x.shape[-1])
        return len(x) * height * width

    def compute(self, first: Tensor, second: Tensor) -> Tensor:
        return self._convolve(first, second, self.bias)

    def product(self, first: Tensor, second: Tensor) -> Tensor:
        return self._convolve(first, second, None)


class QuantLayerNorm(QuantOperation, nn.LayerNorm):
    """`nn.LayerNorm` with a quantized input; only where the bit table has ``norm.input``."""

    def __init__(self, layer: nn.LayerNorm, name: str, table: BitTable) -> None:
        nn.LayerNorm.__init__(
            self, list(layer.normalized_shape), layer.eps, layer.elementwise_affine
        )
        self.name, self.role = name, "norm"
        self.weight, self.bias = layer.weight, layer.bias
        self.input_quantizer = build_quantizer(
            table.of("norm.input", name), f"{name}.input", axis=-1
        )

    def quantizers(self) -> dict[str, Quantizer]:
        return {"norm.input": self.input_quantizer}

    def compute(self, first: Tensor, second: Tensor) -> Tensor:
        raise self._refusal()

    def operands(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        raise self._refusal()

    def _refusal(self) -> MethodError:
        return MethodError(f"{self.name}: a norm multiplies no two operands to search scales of")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [..., C] after quantizing it."""
        return nn.LayerNorm.forward(self, self.input_quantizer(x))


class QuantMatMul(QuantOperation):
    """Product of two activations [B, heads, N, K] x [B, heads, K, M], both quantized.

    The second operand is handed over as [B, heads, M, K] if ``transposed`` (keys), else as it is.
    """

    output_axis = 1

    def __init__(
        self, name: str, role: str, keys: tuple[str, str], table: BitTable, transposed: bool
    ) -> None:
        super().__init__()
        self.name, self.role, self.keys, self.transposed = name, role, keys, transposed
        self.first_quantizer = build_quantizer(table.of(keys[0], name), f"{name}.{keys[0]}", axis=1)
        self.second_quantizer = build_quantizer(
            table.of(keys[1], name), f"{name}.{keys[1]}", axis=1
        )

    def quantizers(self) -> dict[str, Quantizer]:
        return {self.keys[0]: self.first_quantizer, self.keys[1]: self.second_quantizer}

    @property
    def idle(self) -> bool:
        """Whether nobody would notice if this product were computed elsewhere, fused with others."""
        modules = (self, self.first_quantizer, self.second_quantizer)
        watched = any(m._forward_pre_hooks or m._forward_hooks for m in modules)
        return not (watched or self.first_quantizer.quantizes or self.second_quantizer.quantizes)

    def operands(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return inputs[0], inputs[1]

    def compute(self, first: Tensor, second: Tensor) -> Tensor:
        return first @ (second.transpose(-2, -1) if self.transposed else second)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Multiply both operands after quantizing them."""
        return self.compute(self.first_quantizer(first), self.second_quantizer(second))

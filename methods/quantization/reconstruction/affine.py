"""Trainables of what stays in floating point: LayerNorm's weight and bias, biases and scales of layers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vit_ptq_bench.methods.quantization.model.layers import QuantOperation, WeightedOperation
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import spread
from vit_ptq_bench.methods.quantization.quantizers.levels import TableQuantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import UniformQuantizer
from vit_ptq_bench.methods.quantization.reconstruction.trainables import Attachment, Trainable, Unit


class _Replaced(Attachment):
    """Trained copies of parameters of one module, in their place."""

    def __init__(
        self, operation: QuantOperation, module: nn.Module, names: tuple[str, ...]
    ) -> None:
        self.operation, self._module = operation, module
        self._before: dict[str, nn.Parameter] = {name: getattr(module, name) for name in names}
        self._trained = {
            name: nn.Parameter(own.detach().clone()) for name, own in self._before.items()
        }
        self.switch(True)

    def parameters(self) -> list[nn.Parameter]:
        return list(self._trained.values())

    def switch(self, on: bool) -> None:
        for name, parameter in (self._trained if on else self._before).items():
            setattr(self._module, name, parameter)

    def detach(self, accept: bool) -> None:
        self.switch(accept)
        for parameter in self._trained.values():
            parameter.requires_grad_(False)


@dataclass(frozen=True)
class NormAffine(Trainable):
    """Weight and bias of the LayerNorms that one layer reads: before attention, MLP and patch merging."""

    rate: float = 1e-3

    def attach(self, unit: Unit) -> list[Attachment]:
        inside = set(unit.segment.operations)
        return [
            _Replaced(link.reader, link.norm, ("weight", "bias"))
            for link in unit.structure.norm_links
            if link.reader in inside and unit.is_quantized
        ]


@dataclass(frozen=True)
class Biases(Trainable):
    """Biases of linear layers and convolutions, where they have one."""

    rate: float = 1e-3

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            _Replaced(op, op, ("bias",))
            for op in unit.segment.operations
            if isinstance(op, WeightedOperation) and op.bias is not None and unit.is_quantized
        ]


class _Factors(nn.Module):
    """Multiplies a weight by a positive factor for each of its quantizer's scales."""

    def __init__(self, scale: Tensor, axis: int | None) -> None:
        super().__init__()
        self.axis, self.on = axis, True
        self.logarithms = nn.Parameter(torch.zeros_like(scale))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * spread(self.logarithms.exp(), weight, self.axis) if self.on else weight


class _ScaleAttachment(Attachment):
    """Factors of the scales of one layer whose weight is held as codes."""

    operation: WeightedOperation

    def __init__(
        self, operation: WeightedOperation, quantizer: UniformQuantizer | TableQuantizer
    ) -> None:
        self.operation, self._quantizer = operation, quantizer
        self._factors = _Factors(quantizer.scale, quantizer.axis)
        parametrize.register_parametrization(operation, "weight", self._factors)

    def parameters(self) -> list[nn.Parameter]:
        return [self._factors.logarithms]

    def switch(self, on: bool) -> None:
        self._factors.on = on

    @torch.no_grad()
    def detach(self, accept: bool) -> None:
        parametrize.remove_parametrizations(self.operation, "weight", leave_parametrized=False)
        if not accept:
            return
        assert self.operation.codes is not None
        self._quantizer.scale.mul_(self._factors.logarithms.exp())
        self.operation.set_codes(self.operation.codes.int() + self.operation.code_offset)


@dataclass(frozen=True)
class CodedScales(Trainable):
    """Scales of weights that are codes already, the codes held: a factor for each row (PEQA).

    Source: Kim et al., Memory-Efficient Fine-Tuning of Compressed Large Language Models via sub-4-bit Integer
    Quantization, NeurIPS 2023, where a task is learned so. The rate is a share of each scale.
    """

    rate: float = 1e-3

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            _ScaleAttachment(op, op.weight_quantizer)
            for op in unit.segment.operations
            if isinstance(op, WeightedOperation)
            and op.frozen
            and isinstance(op.weight_quantizer, UniformQuantizer | TableQuantizer)
        ]


@dataclass(frozen=True)
class FloatWeights(Trainable):
    """Weights and biases in floating point, where weights are not quantized yet (I&S-ViT, stage 1)."""

    rate: float = 4e-5

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            _Replaced(op, op, ("weight",) if op.bias is None else ("weight", "bias"))
            for op in unit.layers()
        ]

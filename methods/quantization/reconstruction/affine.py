"""Trainables of what stays in floating point: LayerNorm's weight and bias, biases and scales of layers."""

from dataclasses import dataclass

import torch
from torch import nn

from vit_ptq_bench.methods.quantization.model.layers import QuantOperation, WeightedOperation
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import TrainableOffset
from vit_ptq_bench.methods.quantization.reconstruction.trainables import (
    Attachment,
    Trainable,
    Unit,
)


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


@dataclass(frozen=True)
class FloatWeights(Trainable):
    """Weights and biases in floating point, where weights are not quantized yet (I&S-ViT, stage 1)."""

    rate: float = 4e-5

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            _Replaced(op, op, ("weight",) if op.bias is None else ("weight", "bias"))
            for op in unit.layers()
        ]


class _WeightScale(Attachment):
    """The logarithm of the factor on the scales of a weight that is trained."""

    def __init__(self, operation: WeightedOperation, weight: TrainableOffset) -> None:
        self.operation, self._weight = operation, weight
        self._logarithm = nn.Parameter(torch.zeros_like(weight.inner.scale))
        weight.log_scale = self._logarithm

    def parameters(self) -> list[nn.Parameter]:
        return [self._logarithm]

    def detach(self, accept: bool) -> None:
        inner = self._weight.inner
        if accept:
            inner.set_parameters(inner.scale * self._logarithm.detach().exp(), inner.zero_point)
        self._weight.log_scale = None


@dataclass(frozen=True)
class WeightScales(Trainable):
    """Logarithms of the scales of weights that are trained: the rate is a share of each scale (AdaQuant).

    Stands behind `Weights` in a recipe: what comes last is taken out first, and codes are made on the scales.
    """

    rate: float = 1e-3

    def attach(self, unit: Unit) -> list[Attachment]:
        found: list[Attachment] = []
        for operation in unit.segment.operations:
            if not isinstance(operation, WeightedOperation):
                continue
            weight = operation.weight_quantizer
            if isinstance(weight, TrainableOffset) and weight.log_scale is None:
                found.append(_WeightScale(operation, weight))
        return found

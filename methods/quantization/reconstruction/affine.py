"""Trainables of what stays in floating point: LayerNorm's weight and bias, biases and scales of layers."""

from dataclasses import dataclass

from torch import nn

from vit_ptq_bench.methods.quantization.model.layers import QuantOperation, WeightedOperation
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


@dataclass(frozen=True)
class FloatWeights(Trainable):
    """Weights and biases in floating point, where weights are not quantized yet (I&S-ViT, stage 1)."""

    rate: float = 4e-5

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            _Replaced(op, op, ("weight",) if op.bias is None else ("weight", "bias"))
            for op in unit.layers()
        ]

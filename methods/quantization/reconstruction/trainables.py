"""Trainables: the quantities that a recipe can train in a unit, and how they are put in and taken out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.model.layers import (
    QuantOperation,
    WeightedOperation,
)
from vit_ptq_bench.methods.quantization.model.structure import Segment, Structure, sites_of
from vit_ptq_bench.methods.quantization.quantizers.arithmetic import TINY
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.quantizers.levels import LevelQuantizer
from vit_ptq_bench.methods.quantization.quantizers.uniform import (
    DualUniformQuantizer,
    UniformQuantizer,
)
from vit_ptq_bench.methods.quantization.reconstruction.level_rounding import (
    TrainableLevelOffset,
    TrainableLevelRounding,
)
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    TrainableClip,
    TrainableOffset,
    TrainableQuantizer,
    TrainableRounding,
    TrainableWeight,
)


@dataclass(frozen=True)
class Unit:
    """A piece of the model that is reconstructed at once.

    Attributes:
        segment: the piece of the model.
        structure: of the whole model; its links say where scales can move.
        inputs: the full-precision inputs of the segment for all calibration images.
        quantized: its inputs from the quantized prefix, for the images that ranges are taken from
            (`calibration.range_images`).
        generator: for random drops.
        keep_open: see `Recipe.keep_open`.
    """

    segment: Segment
    structure: Structure
    inputs: Tensor
    quantized: Tensor
    generator: torch.Generator
    keep_open: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether anything in it is quantized, so that there is an error to train against."""
        sites = sites_of(self.segment.operations)
        return not all(site.quantizer.spec.is_float for site in sites)

    def layers(self) -> list[WeightedOperation]:
        """Return the operations with a weight still to be quantized, and that nothing trained stands for.

        Of a frozen one the values themselves are in place, and its quantizer is not asked.
        """
        return [
            op
            for op in self.segment.operations
            if isinstance(op, WeightedOperation)
            and not op.frozen
            and not op.weight_quantizer.spec.is_float
            and not isinstance(op.weight_quantizer, TrainableQuantizer)
        ]


class Attachment:
    """Trained quantities that stand in one place of a unit until they are taken out.

    Attributes:
        operation: the operation in whose unit they belong.
    """

    operation: QuantOperation

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer moves."""
        return []

    def switch(self, on: bool) -> None:
        """Switch on, or off so that the unit is in full precision."""

    def keep(self, probability: float) -> None:
        """Set the probability that an activation is quantized."""

    def settle(self, on: bool) -> None:
        """Compute as it will be once trained (roundings hard), or as while training."""

    def regulariser(self, exponent: float) -> Tensor | None:
        """Return a penalty that joins the loss with the recipe's weight, or None."""
        return None

    def decay(self) -> Tensor | None:
        """Return a penalty that joins the loss as it is, or None."""
        return None

    def detach(self, accept: bool) -> None:
        """Put back what was there, with what was trained if ``accept``."""


@dataclass(frozen=True)
class Trainable(ABC):
    """One kind of trained quantity, with its learning rate.

    Attributes:
        rate: Adam's learning rate; 0 keeps the start values.
        cosine: whether the rate falls to 0 as half a cosine.
    """

    rate: float = 0.0
    cosine: bool = True

    @abstractmethod
    def attach(self, unit: Unit) -> list[Attachment]:
        """Put it into every place of ``unit`` where it belongs."""


class WeightAttachment(Attachment):
    """A trainable quantizer in the place of a weight's; its codes become the weight if it is accepted."""

    operation: WeightedOperation

    def __init__(self, operation: WeightedOperation, trainable: TrainableWeight) -> None:
        self.operation, self.trainable = operation, trainable
        operation.weight_quantizer = trainable

    def parameters(self) -> list[nn.Parameter]:
        return list(self.trainable.parameters(recurse=False))

    def switch(self, on: bool) -> None:
        self.trainable.active = on

    def settle(self, on: bool) -> None:
        self.trainable.settled = on

    def regulariser(self, exponent: float) -> Tensor | None:
        return self.trainable.regulariser(exponent)

    def detach(self, accept: bool) -> None:
        self.operation.weight_quantizer = self.trainable.inner
        if accept:
            codes = self.trainable.codes(self.operation.weight.detach())
            self.operation.set_codes(codes)


def uniform_of(operation: WeightedOperation) -> UniformQuantizer:
    """Return the uniform quantizer of a weight.

    Raises:
        MethodError: it has another form, which cannot be trained.
    """
    quantizer = operation.weight_quantizer
    dual = isinstance(quantizer, DualUniformQuantizer)
    if dual or not isinstance(quantizer, UniformQuantizer):
        raise MethodError(
            f"{quantizer.site}: only uniform weight quantizers can be trained, "
            f"not {quantizer.spec.scheme}"
        )
    return quantizer


@dataclass(frozen=True)
class Roundings(Trainable):
    """AdaRound: whether each weight is rounded up or down (Nagel et al. 2020), between any levels."""

    rate: float = 1e-3
    cosine: bool = False

    def attach(self, unit: Unit) -> list[Attachment]:
        return [WeightAttachment(op, _rounding(op)) for op in unit.layers()]


def _rounding(operation: WeightedOperation) -> TrainableWeight:
    quantizer = operation.weight_quantizer
    if isinstance(quantizer, LevelQuantizer):
        return TrainableLevelRounding(quantizer, operation.weight)
    return TrainableRounding(uniform_of(operation), operation.weight)


@dataclass(frozen=True)
class Weights(Trainable):
    """The weights themselves, through the rounding (straight-through; I&S-ViT).

    Attributes:
        decay: weight of ``|W - W0|^2_H / |W0|^2_H`` of each layer, W0 the weight at the start and H the
            diagonal of the second moment of the layer's input: the share of the output that moves.
    """

    rate: float = 4e-5
    decay: float = 0.0

    def attach(self, unit: Unit) -> list[Attachment]:
        layers = unit.layers()
        moments = input_moments(layers, unit) if self.decay > 0 else {}
        return [
            _OffsetAttachment(
                op,
                _offset(op),
                moments.get(op.name),
                self.decay,
                unit.keep_open,
            )
            for op in layers
        ]


def _offset(operation: WeightedOperation) -> TrainableOffset | TrainableLevelOffset:
    quantizer = operation.weight_quantizer
    if isinstance(quantizer, LevelQuantizer):
        return TrainableLevelOffset(quantizer, operation.weight)
    return TrainableOffset(uniform_of(operation), operation.weight)


class _OffsetAttachment(WeightAttachment):
    trainable: TrainableOffset | TrainableLevelOffset

    def __init__(
        self,
        operation: WeightedOperation,
        trainable: TrainableOffset | TrainableLevelOffset,
        moment: Tensor | None,
        weight: float,
        keep_open: bool = False,
    ) -> None:
        super().__init__(operation, trainable)
        self._moment, self._weight, self._keep_open = moment, weight, keep_open
        self._start = trainable.trained.detach().flatten(1).clone()

    def parameters(self) -> list[nn.Parameter]:
        return [self.trainable.trained]

    def decay(self) -> Tensor | None:
        if self._moment is None:
            return None
        moved = (self.trainable.trained.flatten(1) - self._start).square() @ self._moment
        size = (self._start.square() @ self._moment).sum()
        return self._weight * moved.sum() / size.clamp_min(TINY)

    @torch.no_grad()
    def detach(self, accept: bool) -> None:
        if not self._keep_open:
            super().detach(accept)
            return
        self.operation.weight_quantizer = self.trainable.inner
        if accept:
            self.operation.weight.copy_(self.trainable.trained)


@torch.no_grad()
def input_moments(layers: Sequence[WeightedOperation], unit: Unit) -> dict[str, Tensor]:
    """Return the mean square of each column of the layers' inputs ([K]), by the layer's name."""
    sums: dict[str, Tensor] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, WeightedOperation)
        sums[module.name] = module.columns(inputs[0]).square().mean(0)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(watch).remove)
        unit.segment.run(unit.quantized)
    return sums


@dataclass(frozen=True)
class Clipping(Trainable):
    """Weight clipping (OmniQuant); with ``gain`` also a factor per row (LRQuant+'s r1)."""

    rate: float = 1e-2
    cosine: bool = False
    gain: bool = False

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            WeightAttachment(op, TrainableClip(uniform_of(op), op.weight, self.gain))
            for op in unit.layers()
        ]


def clear(quantizer: Quantizer) -> None:
    """Take the parameters away: the quantizer is as it was before it was calibrated."""
    for module in quantizer.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.new_empty(0)

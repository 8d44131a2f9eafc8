"""Trainables of activations: their steps, scales and ranges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from vit_ptq_bench.methods.quantization.calibration.passes import RangeRule, calibrate_sites
from vit_ptq_bench.methods.quantization.calibration.range_rules import minmax_rule
from vit_ptq_bench.methods.quantization.model.layers import (
    QuantMatMul,
    QuantOperation,
)
from vit_ptq_bench.methods.quantization.model.structure import Segment, sites_of
from vit_ptq_bench.methods.quantization.quantizers.base import Quantizer
from vit_ptq_bench.methods.quantization.reconstruction.trainable_quantizers import (
    BatchRange,
    TrainableActivation,
    TrainableLogScale,
    TrainableLogStep,
    TrainableQuantizer,
    TrainableStep,
)
from vit_ptq_bench.methods.quantization.reconstruction.trainables import (
    Attachment,
    Trainable,
    Unit,
    clear,
)
from vit_ptq_bench.methods.quantization.search.attention_maps import search_maps


class _ActivationAttachment(Attachment):
    def __init__(
        self,
        operation: QuantOperation,
        name: str,
        trainable: TrainableActivation | BatchRange,
    ) -> None:
        self.operation, self.name, self.trainable = operation, name, trainable
        setattr(operation, name, trainable)

    def switch(self, on: bool) -> None:
        self.trainable.active = on


class StepAttachment(_ActivationAttachment):
    """A trainable quantizer in the place of an activation's; it gives that one its step if it is accepted."""

    trainable: TrainableActivation

    def parameters(self) -> list[nn.Parameter]:
        return [] if self.trainable.step is None else [self.trainable.step]

    def keep(self, probability: float) -> None:
        self.trainable.keep = probability

    def detach(self, accept: bool) -> None:
        if not accept:
            self.trainable.step = None
        setattr(self.operation, self.name, self.trainable.finish())


class _RangeAttachment(_ActivationAttachment):
    def detach(self, accept: bool) -> None:
        self.trainable.inner.active = True
        setattr(self.operation, self.name, self.trainable.inner)


class _RangedStepAttachment(StepAttachment):
    """A step that was calibrated behind what is trained: without that it is as good as none."""

    def detach(self, accept: bool) -> None:
        super().detach(accept)
        if not accept:
            clear(self.trainable.inner)


@dataclass(frozen=True)
class Steps(Trainable):
    """Steps of the activation quantizers (LSQ); the drops of QDrop happen here too."""

    rate: float = 4e-5

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            StepAttachment(op, name, TrainableStep(quantizer, unit.generator))
            for op, name, quantizer in activations_of(unit.segment)
        ]


@dataclass(frozen=True)
class LogSteps(Trainable):
    """Logarithms of the steps of the activation quantizers: the rate is a share of each step (AdaQuant)."""

    rate: float = 1e-3

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            StepAttachment(op, name, TrainableLogStep(quantizer, unit.generator))
            for op, name, quantizer in activations_of(unit.segment)
        ]


@dataclass(frozen=True)
class LogScales(Trainable):
    """Logarithms of the scales of quantizers all of whose levels are multiples of the scale.

    Those are the logarithmic forms (`Quantizer.levels_scale`). Stands before `Steps` in a recipe, which takes
    the activations that are left.
    """

    rate: float = 1e-3

    def attach(self, unit: Unit) -> list[Attachment]:
        return [
            StepAttachment(op, name, TrainableLogScale(quantizer, unit.generator))
            for op, name, quantizer in activations_of(unit.segment)
            if quantizer.levels_scale
        ]


@dataclass(frozen=True)
class Ranges(Trainable):
    """Ranges of activations while what lies before them, a smoothing, is trained.

    Dynamic ones follow each batch, as they will each input. Static ones are calibrated with everything else
    in place, on the unit's quantized input, and their steps are trained with the rest: over the range of each
    batch the rest would be trained for ranges that it never gets.

    Attributes:
        rule: calibrates static ones; the scales of attention maps come from the error of attention x value.
    """

    rate: float = 1e-3
    cosine: bool = False
    rule: RangeRule = minmax_rule

    def attach(self, unit: Unit) -> list[Attachment]:
        sites = [site for site in sites_of(unit.segment.operations) if not site.is_weight]
        run = partial(unit.segment.run, unit.quantized)
        calibrate_sites(sites, run, self.rule, sequential=True)
        search_maps(unit.segment.operations, run)
        for site in sites:
            site.quantizer.active = False
        found: list[Attachment] = []
        for op, name, quantizer in activations_of(unit.segment):
            if quantizer.spec.dynamic:
                found.append(_RangeAttachment(op, name, BatchRange(quantizer)))
            else:
                step = TrainableStep(quantizer, unit.generator)
                found.append(_RangedStepAttachment(op, name, step))
        return found


def activations_of(segment: Segment) -> list[tuple[QuantOperation, str, Quantizer]]:
    """Return every quantized activation that nothing trained stands for: operation, attribute, quantizer."""
    found = []
    for operation in segment.operations:
        pair = isinstance(operation, QuantMatMul)
        for name in ("first_quantizer", "second_quantizer") if pair else ("input_quantizer",):
            quantizer = getattr(operation, name)
            if not (quantizer.spec.is_float or isinstance(quantizer, TrainableQuantizer)):
                found.append((operation, name, quantizer))
    return found

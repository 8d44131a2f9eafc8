"""A method on trial, with the models and images that it is tried on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from vit_ptq_bench.bench.contract import models
from vit_ptq_bench.bench.contract.opened import opened_while
from vit_ptq_bench.methods import Method
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, Protocol
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel

DEEP = 4
"""Blocks of the model named ``deep-vit``."""


class Broken(AssertionError):
    """A clause of the contract does not hold; the text says what was found."""


class NotApplicable(Exception):
    """A clause says nothing of this method; the text says why."""


@dataclass
class Watched:
    """A quantization and what was seen while it ran.

    Attributes:
        model: the quantized model.
        opened: files that it opened; see `opened_while`.
        steps: what it told of its progress, done and total.
    """

    model: QuantizedModel
    opened: list[str]
    steps: list[tuple[int, int]]


class Subject:
    """A method, with its ``quick`` settings, on one model.

    Attributes:
        cls: the class.
        method: an instance.
        on: ``vit``, ``deep-vit``, ``deit-distilled``, ``swin`` or the name of a bundled detector.
    """

    def __init__(self, cls: type[Method], on: str) -> None:
        self.cls = cls
        self.on = on
        self.method = cls.create(cls.quick)
        self._made: list[tuple[BitTable, QuantizedModel]] = []

    @cached_property
    def model(self) -> nn.Module:
        """The model, untrained, in full precision."""
        if self.on in models.DETECTORS:
            return models.build_detector(self.on)
        if self.on == "deep-vit":
            return models.build_classifier("vit", DEEP)
        return models.build_classifier(self.on)

    def copied_model(self) -> nn.Module:
        """Return a copy that may be damaged."""
        return copy.deepcopy(self.model)

    @cached_property
    def images(self) -> Tensor:
        """Eight images, [8, 3, H, W]."""
        return (
            models.make_detector_images() if self.on in models.DETECTORS else models.make_images()
        )

    @cached_property
    def calibration(self) -> Calibration:
        """The images as a calibration set."""
        return models.in_batches(self.images, seed=3)

    @cached_property
    def watched(self) -> Watched:
        """The model at W4A4, quantized under observation."""
        made: list[QuantizedModel] = []
        steps: list[tuple[int, int]] = []

        def note(done: int, total: int, stage: str = "") -> None:
            steps.append((done, total))

        opened = opened_while(lambda: made.append(self.fresh("W4A4", progress=note)))
        return Watched(made[0], opened, steps)

    def quantized(self, bits: str, protocol: Protocol = "equal") -> QuantizedModel:
        """Return the quantized model, made once for all checks and protocols that mean one table."""
        table = self.method.bit_table(BitWidth.parse(bits), protocol)
        for made, model in self._made:
            if made == table:
                return model
        common = (bits, protocol) == ("W4A4", "equal")
        model = self.watched.model if common else self.fresh(bits, protocol)
        self._made.append((table, model))
        return model

    def fresh(
        self,
        bits: str,
        protocol: Protocol = "equal",
        calibration: Calibration | None = None,
        progress: CalibrationProgress | None = None,
    ) -> QuantizedModel:
        """Return the quantized model, made anew.

        Raises:
            MethodError: the method refuses.
        """
        table = self.method.bit_table(BitWidth.parse(bits), protocol)
        return self.method.quantize(self.model, table, calibration or self.calibration, progress)

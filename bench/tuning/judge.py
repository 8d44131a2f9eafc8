"""The worth of a configuration, on calibration images that it was not calibrated on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vit_ptq_bench.bench.execution.run import prepare_process
from vit_ptq_bench.bench.planning.answers import blamed
from vit_ptq_bench.bench.planning.method_settings import make_method
from vit_ptq_bench.bench.planning.subject import planned_table, scope_of
from vit_ptq_bench.bench.planning.tune_options import By, TuneOptions
from vit_ptq_bench.bench.tuning.search import Objective
from vit_ptq_bench.bench.tuning.space import Configuration
from vit_ptq_bench.methods import Method, MethodError
from vit_ptq_bench.methods.quantization import inspect_sites, wrap_model
from vit_ptq_bench.methods.quantization.bits import FLOAT, BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.reconstruction.losses import prediction_difference
from vit_ptq_bench.tasks import LoadedModel, Task

AT_ONCE = 8
"""Held-out images that are predicted at a time."""

LOSSLESS = 100.0
"""What a site counts at most in a sum of SQNR, dB: float32 itself has 150."""


def objective_of(by: By, task: Task) -> Objective:
    """Return what is compared for a task.

    ``prediction``: of a classifier the KL divergence from full precision's probabilities, in nats, mean over
    images; of a detector, which gives no probabilities of the image, the relative squared error of its
    feature maps. Both are compared as logarithms, for they span powers of ten. ``local``: the sum of all
    sites' SQNR in dB, the larger the better (after QuantuneV2, arXiv 2501.07161).
    """
    if by == "local":
        return Objective("summed SQNR of all sites, dB", lambda value: value, digits=2)
    name = "relative error of feature maps" if task.dense else "KL divergence"
    return Objective(name, lambda value: -math.log(max(value, 1e-12)))


class Judge:
    """Quantizes the model as configurations say, and measures what comes out.

    Images are the task's calibration images of one draw: the first ones calibrate, those behind the largest
    calibration size judge. Evaluation images are not touched.

    Args:
        methods: the classes of the methods.
        task: whose model it is.
        loaded: the model, on the CPU.
        options: sizes, seed, bits and the rest.
        threads: torch threads.

    Raises:
        MethodError: the method cannot quantize the model at all.
        TaskError: the training set has too few images.
    """

    def __init__(
        self,
        methods: Mapping[str, type[Method]],
        task: Task,
        loaded: LoadedModel,
        options: TuneOptions,
        threads: int,
    ) -> None:
        self._methods, self._task, self._options = methods, task, options
        self._threads = threads
        device = torch.device(options.device)
        self._module = loaded.module.to(device)
        for cls in methods.values():
            plain = cls.create()
            reason = plain.supports(self._module, planned_table(plain, task, options, "equal"))
            if reason is not None:
                raise MethodError(f"{cls.name}: {reason}")
        largest = max(options.calibration_sizes)
        drawn = task.calibration_batches(loaded, largest + options.held_out, options.seed)
        images = torch.cat(drawn).to(device)
        self._images = images[:largest]
        self._held = Calibration([images[largest:]], seed=options.seed)
        self._exact = self._predictions(self._full_precision())

    def __call__(self, configuration: Configuration) -> float:
        """Return the value of the objective.

        Raises:
            MethodError: the method refuses, or the value is not finite.
        """
        options = self._options
        prepare_process(options.seed, self._threads)
        cls = self._methods[configuration.method]
        method = make_method(cls, dict(configuration.parameters) | configuration.settings)
        table = planned_table(method, self._task, options, configuration.protocol)
        # A method that asks for no image has promised not to look.
        images = self._images[: max(1, configuration.images)]
        batches = torch.split(images, self._task.options.batch_size)
        kept: dict[str, Any] = {"keep_unrounded": True} if options.by == "local" else {}
        with blamed(cls, "quantize()"):
            calibration = Calibration(batches, seed=options.seed)
            bits = replace(BitWidth.parse(options.bits), mixed=self._mixed(configuration))
            table = method.mixed_table(self._module, table, bits, calibration)
            quantized = method.quantize(self._module, table, calibration, **kept)
        value = self._local(quantized) if options.by == "local" else self._difference(quantized)
        if not math.isfinite(value):
            raise MethodError("its predictions are NaN or infinite")
        return value

    def _mixed(self, configuration: Configuration) -> bool:
        return configuration.mixed or BitWidth.parse(self._options.bits).mixed

    def _full_precision(self) -> QuantizedModel:
        table = equal_table(BitWidth(FLOAT, FLOAT))
        scope = scope_of(self._task, self._options)
        return wrap_model(self._module, table if scope is None else table.with_scope(scope))

    @torch.no_grad()
    def _predictions(self, model: QuantizedModel) -> Sequence[Tensor | tuple[Tensor, ...]]:
        return [model(images) for images in self._held.split(AT_ONCE)]

    def _difference(self, model: QuantizedModel) -> float:
        """Mean over the images; a detector's relative errors are those of `AT_ONCE` images together."""
        total = 0.0
        sizes = [len(images) for images in self._held.split(AT_ONCE)]
        for size, exact, found in zip(sizes, self._exact, self._predictions(model), strict=True):
            total += size * float(prediction_difference(exact, found, temperature=1.0))
        return total / self._held.n_images

    def _local(self, model: QuantizedModel) -> float:
        figures = [one.sqnr for one in inspect_sites(model, self._held) if one.sqnr is not None]
        return sum(min(one, LOSSLESS) for one in figures)

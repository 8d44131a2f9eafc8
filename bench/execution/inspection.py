"""The figures of a model's tensors and blocks, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.execution.devices import check_device, core_count
from vit_ptq_bench.bench.execution.run import prepare_process
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.answers import blamed
from vit_ptq_bench.bench.planning.inspect_options import InspectOptions
from vit_ptq_bench.bench.planning.names import hint
from vit_ptq_bench.bench.planning.subject import planned_table, prepared_task, scope_of
from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY
from vit_ptq_bench.bench.report.inspection import Inspection
from vit_ptq_bench.methods import Method
from vit_ptq_bench.methods.quantization import inspect_sites, propagation_gains, wrap_model
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth
from vit_ptq_bench.methods.quantization.calibration.data import Calibration
from vit_ptq_bench.methods.quantization.calibration.range_rules import minmax_rule
from vit_ptq_bench.methods.quantization.inspection.sites import SiteFigures
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.tasks import LoadedModel
from vit_ptq_bench.values import shown

RANGES = "minmax"
"""The method whose table is taken, and whose ranges are, where none is asked for."""


def inspected(
    task_name: str, model: str, options: InspectOptions, words: Mapping[str, Any]
) -> Inspection:
    """Return the figures of a model of a task.

    Args:
        task_name, model: of the task and its model.
        options: what else was asked for.
        words: what the command line says, with the options of the task.

    Raises:
        BenchError: something was asked for that does not exist.
        MethodError: the method cannot quantize the model so, or activations are not finite.
        TaskError: data or weights are missing or wrong.
    """
    check_device(options.device)
    task = prepared_task(task_name, model, options, words)
    method = _method(options.method or RANGES)
    table = planned_table(method, task, options, options.protocol)
    prepare_process(options.seed, 1 if task.small else core_count())
    device = torch.device(options.device)
    loaded = task.load_model(model)
    loaded.module.to(device)
    wrapped = wrap_model(loaded.module, table)
    names = _matching(wrapped, options)
    seed = options.seed
    drawn = task.calibration_batches(loaded, options.calibration_images, seed)
    images = Calibration(drawn, seed=seed).to(device)
    table = method.mixed_table(loaded.module, table, BitWidth.parse(options.bits), images)
    chosen = None if options.method is None else method
    figures = _site_figures(chosen, loaded, table, images)
    return Inspection(
        task=task_name,
        model=model,
        bits=options.bits,
        method=options.method,
        protocol=options.protocol,
        scope=scope_of(task, options),
        images=options.calibration_images,
        seed=options.seed,
        sites=[one for one in figures if one.site in names],
        segments=propagation_gains(wrapped, images),
    )


def _method(name: str) -> Method:
    cls = registry.method_class(name)
    if cls.fidelity == REFERENCE_FIDELITY:
        raise BenchError(
            f"{name} quantizes nothing; leave --method out to inspect the model as it is"
        )
    with blamed(cls, "create()"):
        return cls.create()


def _matching(model: QuantizedModel, options: InspectOptions) -> set[str]:
    """The sites that are asked for.

    Raises:
        BenchError: there are none.
    """
    names = [site.name for site in model.sites()]
    chosen = {name for name in names if fnmatchcase(name, options.sites)}
    if not chosen:
        problem = f"--sites: no site matches {shown(options.sites)}"
        raise BenchError(problem + hint(options.sites.strip("*"), names))
    return chosen


def _site_figures(
    method: Method | None, loaded: LoadedModel, table: BitTable, images: Calibration
) -> list[SiteFigures]:
    if method is None:
        return inspect_sites(wrap_model(loaded.module, table), images, minmax_rule)
    with blamed(type(method), "quantize()"):
        quantized = method.quantize(loaded.module, table, images, keep_unrounded=True)
    return inspect_sites(quantized, images)

"""The run itself: load, calibrate, save, evaluate; one record comes out."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit_ptq_bench.bench.execution import logs as warned
from vit_ptq_bench.bench.execution.cache import CacheFolder
from vit_ptq_bench.bench.execution.environment import environment
from vit_ptq_bench.bench.execution.measure import MB, PeakMemory, Stopwatch
from vit_ptq_bench.bench.execution.messages import Job
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.storage import save_quantized

Report = Callable[[str, int, int], None]
"""Told the phase, the finished steps of it and all its steps."""


class Skip(Exception):
    """The method does not support this model or table; the text is the reason."""


class GateMissed(Exception):
    """The full-precision model does not reach the figure it is known for."""


def execute(job: Job, report: Report, fields: dict[str, Any]) -> np.ndarray:
    """Run ``job`` and return the per-image outcomes.

    ``fields`` takes everything for the record as soon as it is known, so that a run that fails half
    way still leaves its environment, its seconds and its memory.

    Raises:
        Skip: the method declines.
        GateMissed: see `check_gate`; ``fields`` is complete.
        Exception: whatever the method or the task raises.
    """
    run = job.run
    device = torch.device(job.device)
    prepare_process(run.seed, job.threads)
    fields["environment"] = environment(device, job.source)
    task = registry.task_class(run.task)(job.task_options)
    method = registry.method_class(run.method).create(run.parameters)
    table = BitTable.from_dict(run.spec["table"])
    fields["convention"] = method.convention(table)
    common = equal_table(BitWidth.parse(run.bits)).with_scope(table.scope)
    fields["common_table"] = common.to_dict()
    fields["primary_metric"] = task.metrics[0]
    watch = Stopwatch(device)
    memory = PeakMemory(device)
    cache = CacheFolder(*job.cache, memory.read) if job.cache is not None else None
    task.cache = cache
    try:
        with watch.phase("load"):
            report("load", 0, 0)
            loaded = task.load_model(run.model)
            reason = method.supports(loaded.module, table)
            if reason is not None:
                raise Skip(reason)
            module = loaded.module.to(device)
            calibration = calibration_set(task, loaded, run.calibration_images, run.seed).to(device)
            calibration.cache = cache
        memory.reset()
        with watch.phase("calibrate"), warned.collected() as texts:
            # Whatever happens, the record has them: a unit that was given back, a batch cut in half.
            fields["environment"]["warnings"] = texts
            quantized = method.quantize(module, table, calibration, _phase(report, "calibrate"))
        fields["peak_memory_mb"] = memory.read()
        if cache is not None:  # a run costs what it would cost alone
            fields["peak_memory_mb"] = max(fields["peak_memory_mb"], cache.peak_mb)
            watch.credit("calibrate", cache.seconds)
        del calibration
        with watch.phase("save"):
            report("save", 0, 0)
            fields["size_mb"] = saved_size(quantized, job)
        with watch.phase("evaluate"):
            evaluation = task.evaluate(quantized, loaded, device, _phase(report, "evaluate"))
    finally:
        fields["seconds"] = watch.total()
    fields["metrics"] = dict(evaluation.metrics)
    fields["intervals"] = {name: list(ends) for name, ends in evaluation.intervals.items()}
    fields["standard_errors"] = dict(evaluation.standard_errors)
    fields["n"] = int(evaluation.n)
    if run.reference is None and run.spec["task"]["limit"] is None:
        check_gate(run.model, loaded, evaluation.metrics[task.metrics[0]], task.metrics[0])
    return np.asarray(evaluation.outcomes, dtype=bool)


def prepare_process(seed: int, threads: int) -> None:
    """Seed every random generator, fix the threads, and ask for reproducible float32 arithmetic."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    # cuBLAS repeats itself only with a fixed workspace; what has no deterministic form warns.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def calibration_set(task: Any, loaded: Any, images: int, seed: int) -> Calibration:
    """The calibration images of a run.

    A method that asks for no image gets a blank one: it has promised not to look, and a data set
    without calibration images must not stop it.
    """
    if images == 0:
        return Calibration([torch.zeros(1, 3, 1, 1)], seed=seed)
    return Calibration(task.calibration_batches(loaded, images, seed), seed=seed)


def check_gate(model: str, loaded: Any, reached: float, metric: str) -> None:
    """The full-precision gate: a wrong checkpoint or preprocessing must not reach a leaderboard.

    Raises:
        GateMissed: the reference figure is known and missed by more than its tolerance.
    """
    if loaded.reference is None or abs(reached - loaded.reference) <= loaded.tolerance:
        return
    raise GateMissed(
        f"{model} reaches {reached:.2f} {metric} in full precision, but {loaded.reference:.2f} is "
        f"known for it (tolerance {loaded.tolerance:.2f}); "
        "check the checkpoint and the preprocessing"
    )


def saved_size(quantized: QuantizedModel, job: Job) -> float:
    """Size of the saved quantized model in MB; the file stays only where the job names one."""
    if job.model_file is not None:
        job.model_file.parent.mkdir(parents=True, exist_ok=True)
        return round(save_quantized(quantized, job.model_file, metadata(job)) / MB, 3)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "model.safetensors"
        return round(save_quantized(quantized, path, metadata(job)) / MB, 3)


def metadata(job: Job) -> dict[str, Any]:
    """What a saved model says about itself; enough for `bench evaluate` to load it again."""
    run = job.run
    return {
        "run_id": run.run_id,
        "task": run.task,
        "model": run.model,
        "method": run.method,
        "bits": run.bits,
        "protocol": run.protocol,
        "spec": run.spec,
    }


def _phase(report: Report, name: str) -> CalibrationProgress:
    """A progress callback for one phase; tells at once that the phase has begun."""
    report(name, 0, 0)

    def tell(done: int, total: int, stage: str = "") -> None:
        report(f"{name} {stage}" if stage else name, done, total)

    return tell

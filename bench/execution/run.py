"""One run: load, calibrate, save, evaluate; what comes out, as far as it gets."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.execution import failures, logs
from vit_ptq_bench.bench.execution.cache import CacheFolder
from vit_ptq_bench.bench.execution.calibration_images import calibration_set, made_set
from vit_ptq_bench.bench.execution.devices import check_device
from vit_ptq_bench.bench.execution.environment import environment
from vit_ptq_bench.bench.execution.inputs import check_data
from vit_ptq_bench.bench.execution.measure import MB, PeakMemory, Stopwatch
from vit_ptq_bench.bench.execution.messages import Job
from vit_ptq_bench.bench.execution.scarcity import quantize_within_memory
from vit_ptq_bench.bench.planning import plugins, registry
from vit_ptq_bench.bench.planning.method_settings import make_method
from vit_ptq_bench.bench.records.files import temporary_path
from vit_ptq_bench.bench.records.outcomes import Outcomes, Replicates
from vit_ptq_bench.bench.records.record import now
from vit_ptq_bench.bench.records.spec import ModelSpec, RunSpec
from vit_ptq_bench.methods.quantization.allocation.sites import mean_bits, site_sizes
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth, TensorSpec, equal_table
from vit_ptq_bench.methods.quantization.calibration.data import Calibration, CalibrationProgress
from vit_ptq_bench.methods.quantization.deployment.costs import costs_by_role
from vit_ptq_bench.methods.quantization.model.quantized_model import QuantizedModel
from vit_ptq_bench.methods.quantization.storage import file_sha256, save_quantized
from vit_ptq_bench.tasks import Evaluation, LoadedModel, Task

Report = Callable[[str, int, int], None]
"""Told the phase, the finished steps of it and all its steps."""


@dataclass
class Made:
    """What a run has made: the fields of its record that its plan does not hold; see `Record`.

    Attributes:
        outcomes: per image, in the data set's order; None unless the run is ok.
        replicates: see `Evaluation`.
    """

    started: str
    status: str = "ok"
    error: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    common_table: BitTable | dict[str, TensorSpec] | None = None
    primary_metric: str | None = None
    metric_titles: tuple[tuple[str, str], ...] = ()
    outcomes_metric: str | None = None
    data_notes: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    standard_errors: dict[str, float] = field(default_factory=dict)
    n: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    size_mb: float | None = None
    stored_bits: dict[str, float] = field(default_factory=dict)
    found_bits: dict[str, int] | None = None
    costs: dict[str, dict[str, int]] = field(default_factory=dict)
    model_sha256: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    outcomes: Outcomes | None = None
    replicates: Replicates | None = None


def execute(job: Job, report: Report) -> Made:
    """Run ``job`` and return what came of it; a run that fails half way has made what it got to."""
    execution = _Execution(job, report)
    try:
        execution.run()
    except Exception as error:  # whatever a method or a task raises is the run's result
        status, told = failures.described(error)
        execution.made.status, execution.made.error = status, told
    return execution.made


class _Execution:
    """The state of a run between its phases."""

    def __init__(self, job: Job, report: Report) -> None:
        self.made = Made(started=now())
        self._job, self._report = job, report
        self._spec = job.run.spec
        self._warnings: list[str] = []
        self._device = torch.device(job.device)
        self._watch, self._memory = Stopwatch(self._device), PeakMemory(self._device)

    def run(self) -> None:
        """Go through the phases.

        Raises:
            BenchError: the device is not there: the sweep may be at work on another machine.
            Skip: the method declines.
            GateMissed: see `check_gate`; all else of the result is known.
            Exception: whatever the method or the task raises.
        """
        check_device(self._job.device)
        plugins.load(self._job.plugins)
        prepare_process(self._spec.seed, self._job.threads, self._job.deterministic)
        # Whatever happens, the record has them: a unit that was given back, a batch cut in half.
        self.made.environment = environment(self._device, self._job.source)
        self.made.environment["warnings"] = self._warnings
        task = self._prepared_task()
        try:
            with logs.collected_unrepeatable(self._warnings):
                loaded, evaluation = self._evaluated(task)
        finally:
            self.made.seconds = self._watch.total()
        self._take(evaluation)
        if self._job.run.reference is None and self._spec.task.limit is None:
            metric = task.metrics[0]
            check_gate(self._spec.model.name, loaded, evaluation.metrics[metric], metric)

    def _evaluated(self, task: Task) -> tuple[LoadedModel, Evaluation]:
        """The model as it was loaded, and what its quantized form reaches."""
        with self._watch.phase("load"):
            self._report("load", 0, 0)
            check_data(self._spec, task)
            loaded = task.load_model(self._spec.model.name)
            check_weights(self._spec.model, loaded)
            self.made.data_notes += loaded.notes
        quantized = self._quantized(task, loaded)
        with self._watch.phase("evaluate"):
            progress = _phase(self._report, "evaluate")
            evaluation = task.evaluate(quantized, loaded, self._device, progress)
        if self._memory.with_evaluation:
            calibrating = self.made.peak_memory_mb or 0.0
            self.made.peak_memory_mb = max(calibrating, self._memory.read())
        with self._watch.phase("save"):
            self._report("save", 0, 0)
            facts = metadata(self._job.run.spec, task, loaded, evaluation)
            self.made.size_mb, self.made.model_sha256 = saved(quantized, self._job, facts)
        return loaded, evaluation

    def _prepared_task(self) -> Task:
        """The task, and what the record says of method and task before anything runs."""
        job, made = self._job, self.made
        task = registry.make_task(self._spec.task.name, job.task_options)
        self._cache = CacheFolder(*job.cache, self._memory.read) if job.cache is not None else None
        task.cache = self._cache
        planned = self._spec.method
        self._method = make_method(registry.method_class(planned.name), planned.settings)
        self._table = BitTable(self._spec.table)
        made.notes = self._method.notes()
        made.common_table = equal_table(BitWidth.parse(self._spec.bits)).with_scope(
            self._table.scope
        )
        made.primary_metric = task.metrics[0]
        made.metric_titles = tuple(task.metric_titles.items())
        made.outcomes_metric = task.outcomes_metric
        made.data_notes = task.data_notes()
        return task

    def _quantized(self, task: Task, loaded: LoadedModel) -> QuantizedModel:
        with self._watch.phase("load", more=True):
            reason = self._method.supports(loaded.module, self._table)
            if reason is not None:
                raise failures.Skip(reason)
            module = loaded.module.to(self._device)
            drawn = calibration_set(task, loaded, self._spec.calibration)
        self._memory.reset()
        with self._watch.phase("calibrate"), logs.collected_warnings(self._warnings):
            progress = _phase(self._report, "calibrate")
            # Images that are made belong to what a calibration costs, real ones do not.
            if drawn is None:
                drawn = made_set(task, loaded, self._spec.calibration, self._cache, progress)
            calibration = drawn.to(self._device)
            calibration.cache = self._cache
            bits = BitWidth.parse(self._spec.bits)
            table = self._method.mixed_table(module, self._table, bits, calibration)
            quantized = quantize_within_memory(
                self._method,
                lambda method: method.quantize(module, table, calibration, progress),
                self._device,
                self._warnings,
            )
        self.made.peak_memory_mb = self._memory.read()
        if self._cache is not None:  # a run costs what it would cost alone
            self.made.peak_memory_mb = max(self.made.peak_memory_mb, self._cache.peak_mb)
            self._watch.credit("calibrate", self._cache.seconds)
        self._note_bits(quantized, calibration)
        return quantized

    def _note_bits(self, quantized: QuantizedModel, calibration: Calibration) -> None:
        """What is stored on average, and which bits were chosen in the place of the planned."""
        mixed = BitWidth.parse(self._spec.bits).mixed
        if self._spec.calibration.images:
            self.made.stored_bits = mean_bits(quantized, site_sizes(quantized, calibration))
            self.made.costs = costs_by_role(quantized, calibration.whole()[:1])
        if mixed or self._method.chooses_bits():
            found = quantized.table.items()
            self.made.found_bits = {
                key: spec.bits for key, spec in found if self._table.get(key) != spec
            }

    def _take(self, evaluation: Evaluation) -> None:
        made = self.made
        made.metrics = dict(evaluation.metrics)
        made.intervals = {name: list(ends) for name, ends in evaluation.intervals.items()}
        made.standard_errors = dict(evaluation.standard_errors)
        made.n = int(evaluation.n)
        made.outcomes = np.asarray(evaluation.outcomes, dtype=bool)
        if evaluation.replicates is not None:
            made.replicates = np.asarray(evaluation.replicates, dtype=np.float32)


def prepare_process(seed: int, threads: int, deterministic: bool = False) -> None:
    """Seed every random generator, fix the threads, and ask for reproducible float32 arithmetic.

    An operation that has no deterministic form warns; where ``deterministic``, it raises a RuntimeError.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    # cuBLAS repeats itself only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=not deterministic)


def check_gate(model: str, loaded: LoadedModel, reached: float, metric: str) -> None:
    """The full-precision gate: a wrong checkpoint or preprocessing must not reach a leaderboard.

    Raises:
        GateMissed: the reference figure is known and missed by more than its tolerance.
    """
    if loaded.reference is None or abs(reached - loaded.reference) <= loaded.tolerance:
        return
    raise failures.GateMissed(
        f"{model} reaches {reached:.2f} {metric} in full precision, but {loaded.reference:.2f} is "
        f"known for it (tolerance {loaded.tolerance:.2f}); "
        "check the checkpoint and the preprocessing"
    )


def check_weights(planned: ModelSpec, loaded: LoadedModel) -> None:
    """Refuse weights that are not those that the run's id was made from.

    Raises:
        BenchError: the file was replaced since the sweep was planned.
    """
    if loaded.weights is None or loaded.weights == planned.weights:
        return
    raise BenchError(
        f"the weights of {planned.name} were changed while the sweep ran: planned were {planned.weights}, "
        f"loaded were {loaded.weights}; give the same command again, so that its runs are about the new ones"
    )


def saved(
    quantized: QuantizedModel, job: Job, facts: Mapping[str, Any]
) -> tuple[float, str | None]:
    """Size of the saved quantized model in MB, and the SHA-256 of the file if the job keeps it."""
    kept = job.model_file
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
    path = job.scratch / "model.safetensors" if kept is None else temporary_path(kept)
    try:
        size = round(save_quantized(quantized, path, facts) / MB, 3)
        if kept is None:
            return size, None
        digest = file_sha256(path)
        path.replace(kept)
    except Exception as error:
        if (reason := failures.lack_of_room(error)) is None:
            raise
        raise BenchError(no_room(path.parent, reason, kept is not None)) from error
    finally:
        path.unlink(missing_ok=True)
    return size, digest


def no_room(folder: Path, reason: str, kept: bool) -> str:
    """Return the sentence about a model that could not be written.

    Args:
        folder: that it was to go to.
        reason: of the system's.
        kept: whether the user wants the file, or only its size is noted.
    """
    if kept:
        return f"no room for the saved model in {folder} ({reason}): free some, or leave out --save-models"
    return f"no room for a temporary file in {folder} ({reason}): free some, or set TMPDIR to another folder"


def metadata(
    spec: RunSpec, task: Task, loaded: LoadedModel, evaluation: Evaluation
) -> dict[str, Any]:
    """What a saved model says about itself; enough to build and evaluate it without anything else."""
    network = task.network(loaded)
    return {
        **spec.facts,
        "spec": spec.to_dict(),
        "network": None if network is None else network.to_dict(),
        "licence": task.licence(loaded.name),
        "metrics": {name: round(value, 4) for name, value in evaluation.metrics.items()},
        "images": int(evaluation.n),
    }


def _phase(report: Report, name: str) -> CalibrationProgress:
    """A progress callback for one phase; tells at once that the phase has begun."""
    report(name, 0, 0)

    def tell(done: int, total: int, stage: str = "") -> None:
        report(f"{name} {stage}" if stage else name, done, total)

    return tell

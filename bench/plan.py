"""From a suite to an ordered list of runs, each with an id made from all that decides it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from bench import lookup
from bench.errors import BenchError
from bench.record import run_id
from bench.suite import Suite
from methods import MethodError
from methods.quantization import BitTable, BitWidth

REFERENCE = "fp32"
EQUAL_CALIBRATION_IMAGES = 32
"""Calibration images of every method under ``equal``, unless the suite says otherwise."""


@dataclass(frozen=True)
class Run:
    """One cell of a sweep.

    Attributes:
        run_id: identity, from ``spec``.
        spec: everything that decides the result, see "Records" in docs/architecture.md.
        fidelity: of the method.
        reference: id of the full-precision run it waits for; None for that run itself.
    """

    run_id: str
    spec: dict[str, Any]
    fidelity: str
    reference: str | None

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.spec["task"]["name"]

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.spec["model"]["name"]

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.spec["method"]["name"]

    @property
    def parameters(self) -> dict[str, Any]:
        """All settings of the method, defaults included."""
        return self.spec["method"]["parameters"]

    @property
    def bits(self) -> str:
        """Bit width, like ``W4A4``."""
        return self.spec["bits"]

    @property
    def protocol(self) -> str:
        """``equal`` or ``authors``."""
        return self.spec["protocol"]

    @property
    def seed(self) -> int:
        """Seed of the calibration draw and of every random generator."""
        return self.spec["seed"]

    @property
    def calibration_images(self) -> int:
        """Number of calibration images."""
        return self.spec["calibration"]["images"]

    @property
    def label(self) -> str:
        """The run in a few words, for people."""
        if self.reference is None:
            return f"{self.model} {self.method}"
        return f"{self.model} {self.method} {self.bits} {self.protocol} seed {self.seed}"


def build_plan(suite: Suite, task_options: Any) -> list[Run]:
    """The runs of ``suite``: model by model, each model's full-precision reference first.

    Raises:
        BenchError: an unknown task, model or method, or a parameter the method does not have; with
            file, line and key where the suite is a file.
        TaskError: the task cannot tell the identity of its data or of a model's weights.
    """
    task = make_task(suite, task_options)
    models = _models(suite, task)
    names = method_names(suite)
    _check_parameters(suite, names)
    data = {
        "name": task.name,
        "version": task.version,
        "data": task.data_id(),
        "limit": task_options.limit,
    }
    runs: dict[str, Run] = {}
    for model in models:
        weights = {"name": model, "weights": task.weights_id(model)}
        for run in _model_runs(suite, data, weights, names):
            runs.setdefault(run.run_id, run)
    return list(runs.values())


def make_task(suite: Suite, task_options: Any) -> Any:
    """The task of ``suite``.

    Raises:
        BenchError: there is no such task; with file and line.
        TaskError: the task refuses its options.
    """
    try:
        cls = lookup.task_class(suite.task)
    except BenchError as error:
        raise suite.error(error, "task") from None
    return cls(task_options)


def method_names(suite: Suite) -> list[str]:
    """The methods of ``suite`` in its order; globs leave the reference out, it always runs.

    Raises:
        BenchError: an unknown method; with file and line.
    """
    known = sorted(lookup.methods())
    candidates = [name for name in known if lookup.methods()[name].fidelity != "reference"]
    names: dict[str, None] = {}
    for pattern in suite.methods:
        pool = candidates if lookup.is_glob(pattern) else known
        if pattern not in pool and not lookup.is_glob(pattern):
            try:
                lookup.method_class(pattern)
            except BenchError as error:
                raise suite.error(error, "methods", value=pattern) from None
        names.update(dict.fromkeys(_choose_one(suite, "methods", "method", pattern, pool)))
    return [name for name in names if name != REFERENCE]


def calibration_images(suite: Suite, method: Any, protocol: str) -> int:
    """How many calibration images ``method`` gets.

    The suite's number if it has one; else 32 for all under ``equal`` and the authors' own number
    under ``authors``. A method that uses none gets none.
    """
    if method.calibration_images == 0:
        return 0
    if suite.calibration_images is not None:
        return suite.calibration_images
    return EQUAL_CALIBRATION_IMAGES if protocol == "equal" else method.calibration_images


def _model_runs(
    suite: Suite, task: dict[str, Any], model: dict[str, Any], names: list[str]
) -> Iterator[Run]:
    reference = _run(suite, task, model, REFERENCE, "W32A32", "equal", 0, None)
    yield reference
    for protocol, bits, name, seed in product(suite.protocols, suite.bits, names, suite.seeds):
        yield _run(suite, task, model, name, bits, protocol, seed, reference.run_id)


def _run(
    suite: Suite,
    task: dict[str, Any],
    model: dict[str, Any],
    name: str,
    bits: str,
    protocol: str,
    seed: int,
    reference: str | None,
) -> Run:
    cls = lookup.method_class(name)
    method = cls.create(suite.parameters.get(name, {}))
    table: BitTable = method.bit_table(BitWidth.parse(bits), protocol)
    spec = {
        "method": {"name": name, "version": cls.version, "parameters": asdict(method.parameters)},
        "model": model,
        "task": task,
        "bits": bits,
        "protocol": protocol,
        "table": table.to_dict(),
        "calibration": {"images": calibration_images(suite, cls, protocol), "draw": seed},
        "seed": seed,
        "precision": "float32",
    }
    return Run(run_id(spec), spec, cls.fidelity, reference)


def _models(suite: Suite, task: Any) -> list[str]:
    """The models of ``suite``; a task may know more of them by name than it lists."""
    listed = task.model_names()
    chosen: dict[str, None] = {}
    for pattern in suite.models:
        known = [*listed, pattern] if task.knows_model(pattern) else listed
        chosen.update(dict.fromkeys(_choose_one(suite, "models", "model", pattern, known)))
    return list(chosen)


def _choose_one(suite: Suite, key: str, kind: str, pattern: str, known: list[str]) -> list[str]:
    try:
        return lookup.choose(kind, [pattern], known)
    except BenchError as error:
        raise suite.error(error, key, value=pattern) from None


def _check_parameters(suite: Suite, names: list[str]) -> None:
    """Refuse settings for an unknown method, and settings the method does not have."""
    for name, settings in suite.parameters.items():
        try:
            lookup.method_class(name).create(settings)
        except (BenchError, MethodError) as error:
            key = next(
                (key for key in settings if repr(key) in str(error) or f".{key} " in str(error)),
                None,
            )
            raise suite.error(error, "parameters", name, *([key] if key else [])) from None

"""From a suite to an ordered list of runs, each with an id made from all that decides it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.names import choose, hint, is_glob
from vit_ptq_bench.bench.planning.suite import Suite
from vit_ptq_bench.bench.records.record import run_id, title
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import BitTable, BitWidth

REFERENCE_METHOD = "fp32"


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
        variant: the suite's label of these settings; for people, no part of the identity.
    """

    run_id: str
    spec: dict[str, Any]
    fidelity: str
    reference: str | None
    variant: str | None = None

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
    def title(self) -> str:
        """Method and variant, like ``mgrq +obwr``."""
        return title(self.method, self.variant)

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
    def scope(self) -> str | None:
        """What of a detector is quantized; None where it is always the whole model."""
        return self.spec.get("scope")

    @property
    def label(self) -> str:
        """The run in a few words, for people."""
        if self.reference is None:
            return f"{self.model} {self.title}"
        scope = f" {self.scope}" if self.scope else ""
        return f"{self.model} {self.title} {self.bits} {self.protocol}{scope} seed {self.seed}"


@dataclass(frozen=True)
class Choice:
    """A method as a suite wants it.

    Attributes:
        name: of the method.
        settings: what differs from the method's defaults.
        variant: the suite's label; None for a method without variants.
    """

    name: str
    settings: Mapping[str, Any]
    variant: str | None = None


def build_plan(suite: Suite, task_options: Any) -> list[Run]:
    """The runs of ``suite``: model by model, each model's full-precision reference first.

    Raises:
        BenchError: an unknown task, model or method, a parameter the method does not have, or
            variants that do not fit; with file, line and key where the suite is a file.
        TaskError: the task cannot tell the identity of its data or of a model's weights.
    """
    task = make_task(suite, task_options)
    models = _models(suite, task)
    names = method_names(suite)
    _check_parameters(suite)
    _check_variants(suite, names)
    chosen = choices(suite, names)
    scopes = _scopes(suite, task)
    data = {
        "name": task.name,
        "version": task.version,
        "data": task.data_id(),
        "limit": task_options.limit,
    }
    runs: dict[str, Run] = {}
    for model in models:
        weights = {"name": model, "weights": task.weights_id(model)}
        for run in _model_runs(suite, task, data, weights, chosen, scopes):
            runs.setdefault(run.run_id, run)
    return list(runs.values())


def make_task(suite: Suite, task_options: Any) -> Any:
    """The task of ``suite``.

    Raises:
        BenchError: there is no such task; with file and line.
        TaskError: the task refuses its options.
    """
    try:
        cls = registry.task_class(suite.task)
    except BenchError as error:
        raise suite.error(error, "task") from None
    return cls(task_options)


def method_names(suite: Suite) -> list[str]:
    """The methods of ``suite`` in its order; globs leave the reference out, it always runs.

    Raises:
        BenchError: an unknown method; with file and line.
    """
    known = sorted(registry.methods())
    candidates = [name for name in known if registry.methods()[name].fidelity != "reference"]
    names: dict[str, None] = {}
    for pattern in suite.methods:
        pool = candidates if is_glob(pattern) else known
        if pattern not in pool and not is_glob(pattern):
            try:
                registry.method_class(pattern)
            except BenchError as error:
                raise suite.error(error, "methods", value=pattern) from None
        names.update(dict.fromkeys(_choose_one(suite, "methods", "method", pattern, pool)))
    return [name for name in names if name != REFERENCE_METHOD]


def choices(suite: Suite, names: Sequence[str]) -> list[Choice]:
    """What ``suite`` runs of the methods ``names``: each once, or once per variant."""
    chosen = []
    for name in names:
        common = suite.parameters.get(name, {})
        variants = suite.variants.get(name, {})
        chosen += [Choice(name, {**common, **own}, label) for label, own in variants.items()]
        if not variants:
            chosen.append(Choice(name, common))
    return chosen


def calibration_images(
    method: Any, protocol: str, given: int | None = None, dense: bool = False
) -> int:
    """How many calibration images ``method`` gets.

    The number ``given`` by the suite if it has one; else 32 for all under ``equal`` and the
    authors' own number under ``authors``, for detection (``dense``) theirs on COCO if known.
    A method that uses none gets none.
    """
    if method.calibration_images == 0:
        return 0
    if given is not None:
        return given
    if protocol == "equal":
        return EQUAL_CALIBRATION_IMAGES
    on_coco = getattr(method, "detection_images", None)
    return on_coco if dense and on_coco else method.calibration_images


def _scopes(suite: Suite, task: Any) -> tuple[str | None, ...]:
    """The scopes of ``suite``; the task's usual one where it names none.

    Raises:
        BenchError: the task has no such scope; with file and line.
    """
    known = tuple(getattr(task, "scopes", ()))
    for scope in suite.scopes:
        if scope not in known:
            there = f"scopes {', '.join(known)}" if known else "no scopes"
            raise suite.error(f"task {task.name} has {there}, not {scope!r}", "scopes", value=scope)
    return suite.scopes or known[:1] or (None,)


def _model_runs(
    suite: Suite,
    task: Any,
    data: dict[str, Any],
    model: dict[str, Any],
    chosen: list[Choice],
    scopes: Sequence[str | None],
) -> Iterator[Run]:
    full = Choice(REFERENCE_METHOD, suite.parameters.get(REFERENCE_METHOD, {}))
    # In full precision there is nothing to tell scopes apart.
    reference = _run(suite, task, data, model, full, "W32A32", "equal", None, 0, None)
    yield reference
    # What runs can share (images, full-precision results) depends on seed and method, not on the bits.
    cells = product(suite.protocols, scopes, suite.seeds, chosen, suite.bits)
    for protocol, scope, seed, choice, bits in cells:
        yield _run(suite, task, data, model, choice, bits, protocol, scope, seed, reference.run_id)


def _run(
    suite: Suite,
    task: Any,
    data: dict[str, Any],
    model: dict[str, Any],
    choice: Choice,
    bits: str,
    protocol: str,
    scope: str | None,
    seed: int,
    reference: str | None,
) -> Run:
    cls = registry.method_class(choice.name)
    method = cls.create(choice.settings)
    dense = bool(getattr(task, "dense", False))
    images = calibration_images(cls, protocol, suite.calibration_images, dense)
    table: BitTable = method.bit_table(BitWidth.parse(bits), protocol)
    if scope is not None:
        table = table.with_scope(scope)
    spec = {
        "method": {
            "name": choice.name,
            "version": cls.version,
            "parameters": asdict(method.parameters),
        },
        "model": model,
        "task": data,
        "bits": bits,
        "protocol": protocol,
        "table": table.to_dict(),
        "calibration": {"images": images, "draw": seed},
        "seed": seed,
        "precision": "float32",
    }
    if scope is not None:
        spec["scope"] = scope
    return Run(run_id(spec), spec, cls.fidelity, reference, choice.variant)


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
        return choose(kind, [pattern], known)
    except BenchError as error:
        raise suite.error(error, key, value=pattern) from None


def _check_parameters(suite: Suite) -> None:
    """Refuse settings for an unknown method, and settings the method does not have."""
    for name, settings in suite.parameters.items():
        _create(suite, name, {}, settings, "parameters", name)


def _check_variants(suite: Suite, names: Sequence[str]) -> None:
    """Refuse variants of a method that does not run, with wrong settings, or of equal settings.

    Under ``--methods`` a method may well not run; it only has to exist.
    """
    for name, variants in suite.variants.items():
        if name not in names and "methods" not in suite.overridden:
            raise suite.error(
                f"the suite runs no method {name!r}{hint(name, names)}", "variants", name
            )
        common = suite.parameters.get(name, {})
        seen: dict[str, Any] = {}
        for label, own in variants.items():
            parameters = _create(suite, name, common, own, "variants", name, label).parameters
            twins = [other for other, known in seen.items() if known == parameters]
            if twins:
                raise suite.error(
                    f"has the same settings as variant {twins[0]!r}", "variants", name, label
                )
            seen[label] = parameters


def _create(
    suite: Suite, name: str, common: Mapping[str, Any], own: Mapping[str, Any], *keys: str
) -> Any:
    """The method ``name`` with the settings ``common`` and, on top, ``own``.

    ``common`` is known to be right, ``own`` stands in the suite under ``keys``.

    Raises:
        BenchError: the method is unknown, or something in ``own`` is wrong.
    """
    try:
        cls = registry.method_class(name)
    except BenchError as error:
        raise suite.error(error, *keys) from None
    known = [field.name for field in fields(cls.Parameters)]
    for key in own:
        if key not in known:
            raise suite.error(f"{name} has no parameter {key!r}{hint(key, known)}", *keys, key)
    try:
        return cls.create({**common, **own})
    except MethodError as error:
        wrong = [key for key in own if repr(key) in str(error) or f".{key} " in str(error)]
        raise suite.error(error, *keys, *wrong[:1]) from None

"""From a suite to an ordered list of runs, each with an id made from all that decides it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.answers import ask, asked_table, blamed
from vit_ptq_bench.bench.planning.factorial import combinations
from vit_ptq_bench.bench.planning.method_settings import (
    check_factorials,
    check_parameters,
    check_single_draw,
    check_variants,
    make_method,
)
from vit_ptq_bench.bench.planning.models import choose_one, models_of
from vit_ptq_bench.bench.planning.names import is_glob
from vit_ptq_bench.bench.planning.size import Say, Size, check_size, silent
from vit_ptq_bench.bench.planning.sources import Sources, check_sources
from vit_ptq_bench.bench.planning.suite import Suite
from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY
from vit_ptq_bench.bench.records.spec import (
    REFERENCE_METHOD,
    MethodSpec,
    ModelSpec,
    RunSpec,
    TaskSpec,
)
from vit_ptq_bench.methods import Method
from vit_ptq_bench.methods.api.parameters import identity_of
from vit_ptq_bench.methods.quantization.bits import ALLOCATION, BitTable, BitWidth, Protocol
from vit_ptq_bench.methods.quantization.calibration.sources import TRAINING
from vit_ptq_bench.tasks import Task, TaskError, TaskOptions

EQUAL_CALIBRATION_IMAGES = 32
"""Calibration images of every method under ``equal``, unless the suite says otherwise."""


@dataclass(frozen=True)
class Run:
    """One cell of a sweep.

    Attributes:
        spec: everything that decides the result.
        fidelity, family: of the method.
        reference: id of the full-precision run it waits for; None for that run itself.
        variant: the suite's label of these settings; for people, no part of the identity.
        evaluated: images that the run judges on; None: the task does not tell.
    """

    spec: RunSpec
    fidelity: str
    reference: str | None
    variant: str | None = None
    family: str = "other"
    evaluated: int | None = None

    @property
    def run_id(self) -> str:
        """Identity, made from ``spec``."""
        return self.spec.run_id

    @property
    def title(self) -> str:
        """Method and variant, like ``mgrq +obwr``."""
        return self.spec.title(self.variant)

    @property
    def label(self) -> str:
        """The run in a few words, for people."""
        spec = self.spec
        if self.reference is None:
            return f"{spec.model.name} {self.title}"
        scope = f" {spec.scope}" if spec.scope else ""
        return f"{spec.model.name} {self.title} {spec.bits} {spec.protocol}{scope} seed {spec.seed}"


@dataclass(frozen=True)
class Choice:
    """A method as a suite wants it.

    Attributes:
        name: of the method.
        settings: what differs from the method's defaults, and the transforms before it.
        variant: the suite's label; None for a method without variants.
    """

    name: str
    settings: Mapping[str, Any]
    variant: str | None = None


@dataclass(frozen=True)
class Cell:
    """What the runs of one model of a suite differ in."""

    choice: Choice
    bits: str
    protocol: Protocol
    scope: str | None
    seed: int
    source: str = TRAINING


@dataclass(frozen=True)
class Part:
    """What a cell says of a run whatever its model and seed.

    Attributes:
        method: the method with its settings.
        fidelity, family: of the method.
        table: how each site is represented.
        images: number of calibration images.
    """

    method: MethodSpec
    fidelity: str
    family: str
    table: BitTable
    images: int


@dataclass(frozen=True)
class Common:
    """What all runs of a suite share.

    Attributes:
        suite: the suite.
        task: its task.
        data: the task with its data, as specifications have it.
        sources: of calibration images.
        evaluated: images to judge on; None: the task does not tell.
        parts: what was made of cells, by method, variant, bits, protocol and scope.
    """

    suite: Suite
    task: Task
    data: TaskSpec
    sources: Sources
    evaluated: int | None = None
    parts: dict[tuple[str | None, ...], Part] = field(default_factory=dict)

    def part(self, cell: Cell) -> Part:
        """What ``cell`` says, made once."""
        key = (cell.choice.name, cell.choice.variant, cell.bits, cell.protocol, cell.scope)
        if key not in self.parts:
            self.parts[key] = part_of(self.suite, self.task, cell)
        return self.parts[key]


def plan_all(
    suites: Sequence[Suite], options: Mapping[str, TaskOptions], say: Say = silent
) -> list[Run]:
    """Return the runs of all suites, each once.

    What the command line says instead of the suites (models, scopes) may fit only one of them: a suite that
    it does not fit is left out, if there is another that it fits.

    Args:
        suites: in order.
        options: of each task, by its name.
        say: takes each suite's size before it is expanded, then what its task says of its data.

    Raises:
        BenchError: what `build_plan` raises.
    """
    runs: dict[str, Run] = {}
    failures: list[BenchError] = []
    for suite in suites:
        try:
            for run in build_plan(suite, options[suite.task], say):
                runs.setdefault(run.run_id, run)
        except BenchError as error:
            if len(suites) == 1 or not {"models", "scopes"} & set(suite.overridden):
                raise
            failures.append(error)
    if not runs and failures:
        raise failures[0]
    return list(runs.values())


def build_plan(suite: Suite, options: TaskOptions, say: Say = silent) -> list[Run]:
    """The runs of ``suite``: model by model, each model's full-precision reference first.

    Raises:
        BenchError: an unknown task, model or method, a model that no family of models can take, a parameter
            the method does not have, variants that do not fit, or more calibration images than there are;
            with file, line and key where the suite is a file. More runs than `size.MAX_RUNS`. A method or
            task that fails or answers what it must not.
        TaskError: the task cannot tell the identity of its data or of a model's weights, or these do not fit.
    """
    task, models, cells = expand(suite, options, say)
    data = TaskSpec(task.name, task.version, ask(task, "data_id"), options.limit)
    for note in ask(task, "data_notes"):
        say(f"{task.name}: {note}")
    common = Common(suite, task, data, Sources(suite, task, say), ask(task, "evaluated_images"))
    runs: dict[str, Run] = {}
    for name in models:
        model = ModelSpec(name, ask(task, "weights_id", name))
        if (problem := ask(task, "weights_problem", name)) is not None:
            raise TaskError(problem if problem.startswith(f"{name} ") else f"{name}: {problem}")
        for run in _model_runs(common, model, cells):
            runs.setdefault(run.run_id, run)
    return list(runs.values())


class Expansion(NamedTuple):
    """A suite with its globs resolved: each model runs in full precision, then every cell."""

    task: Task
    models: list[str]
    cells: list[Cell]


def expand(suite: Suite, options: TaskOptions, say: Say = silent) -> Expansion:
    """Return what ``suite`` would run, without a look at data or weights.

    Raises:
        BenchError: what `build_plan` raises, but for data and weights.
    """
    task = _make_task(suite, options)
    if suite.model_args and not task.takes_model_args:
        raise suite.error(
            f"task {task.name} takes no model_args", "models", next(iter(suite.model_args))
        )
    scopes = _scopes(suite, task)
    models = models_of(suite, task, scopes, say)
    names = method_names(suite)
    check_parameters(suite)
    check_variants(suite, names)
    check_factorials(suite, names)
    check_single_draw(suite, names)
    check_sources(suite)
    chosen = choices(suite, names)
    check_size(suite, Size.of(suite, len(models), [one.name for one in chosen], len(scopes)), say)
    return Expansion(task, models, list(_cells(suite, chosen, scopes)))


def _make_task(suite: Suite, options: TaskOptions) -> Task:
    """The task of ``suite``; errors name file and line."""
    try:
        return registry.make_task(suite.task, options)
    except BenchError as error:
        raise suite.error(error, "task") from None


def method_names(suite: Suite) -> list[str]:
    """The methods of ``suite`` in its order; globs leave the reference out, it always runs.

    Raises:
        BenchError: an unknown method; with file and line.
    """
    methods = registry.methods()
    known = sorted(methods)
    candidates = [name for name in known if methods[name].fidelity != REFERENCE_FIDELITY]
    names: dict[str, None] = {}
    for pattern in suite.methods:
        pool = candidates if is_glob(pattern) else known
        if pattern not in pool and not is_glob(pattern):
            try:
                registry.method_class(pattern)
            except BenchError as error:
                raise suite.error(error, "methods", value=pattern) from None
        names.update(dict.fromkeys(choose_one(suite, "methods", "method", pattern, pool)))
    return [name for name in names if name != REFERENCE_METHOD]


def choices(suite: Suite, names: Sequence[str]) -> list[Choice]:
    """What ``suite`` runs of the methods ``names``: each once, or once per variant or combination."""
    chosen = []
    for name in names:
        common = suite.parameters.get(name, {})
        variants = suite.variants.get(name, {})
        if name in suite.factorial:
            variants = combinations(suite.factorial[name])
        chosen += [Choice(name, {**common, **own}, label) for label, own in variants.items()]
        if not variants:
            chosen.append(Choice(name, common))
    return chosen


def calibration_images(
    method: type[Method], protocol: str, given: int | None = None, dense: bool = False
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
    on_coco = method.detection_images
    return on_coco if dense and on_coco else method.calibration_images


def _scopes(suite: Suite, task: Task) -> tuple[str | None, ...]:
    """The scopes of ``suite``; the task's usual one where it names none.

    Raises:
        BenchError: the task has no such scope; with file and line.
    """
    known = task.scopes
    for scope in suite.scopes:
        if scope not in known:
            there = f"scopes {', '.join(known)}" if known else "no scopes"
            raise suite.error(f"task {task.name} has {there}, not {scope!r}", "scopes", value=scope)
    return suite.scopes or known[:1] or (None,)


def _cells(suite: Suite, chosen: Sequence[Choice], scopes: Sequence[str | None]) -> Iterator[Cell]:
    # What runs can reuse (images, full-precision results) depends on seed and method, not on the bits.
    order = product(suite.calibration, suite.protocols, scopes, suite.seeds, chosen, suite.bits)
    for source, protocol, scope, seed, choice, bits in order:
        if seed != suite.seeds[0] and choice.name in suite.single_draw:
            continue
        yield Cell(choice, bits, protocol, scope, seed, source)


def _model_runs(common: Common, model: ModelSpec, cells: Sequence[Cell]) -> Iterator[Run]:
    full = Choice(REFERENCE_METHOD, common.suite.parameters.get(REFERENCE_METHOD, {}))
    # In full precision there is nothing to tell scopes apart.
    reference = _run(common, model, Cell(full, "W32A32", "equal", None, 0), None)
    yield reference
    for cell in cells:
        yield _run(common, model, cell, reference.run_id)


def _run(common: Common, model: ModelSpec, cell: Cell, reference: str | None) -> Run:
    part = common.part(cell)
    spec = RunSpec(
        method=part.method,
        model=model,
        task=common.data,
        bits=cell.bits,
        protocol=cell.protocol,
        table=part.table,
        calibration=common.sources.spec(cell.source, part.images, cell.seed, cell.choice.name),
        seed=cell.seed,
        scope=cell.scope,
        allocation=_allocation(common, cell, part),
    )
    variant = cell.choice.variant
    return Run(spec, part.fidelity, reference, variant, part.family, common.evaluated)


def _allocation(common: Common, cell: Cell, part: Part) -> int | None:
    """Version of what shares the bits out, where it is not the method itself that does."""
    if not BitWidth.parse(cell.bits).mixed:
        return None
    if not part.images:
        raise common.suite.error(
            f"{cell.choice.name} sees no images, and {cell.bits} shares bits out by what images lose",
            "bits",
            value=cell.bits,
        )
    return None if registry.method_class(cell.choice.name).chooses_bits() else ALLOCATION


def part_of(suite: Suite, task: Task, cell: Cell) -> Part:
    """Return what ``cell`` says of a run whatever its model and seed.

    Raises:
        BenchError: a method that fails or answers what it must not.
    """
    cls = registry.method_class(cell.choice.name)
    with blamed(cls, "create()"):
        method = make_method(cls, cell.choice.settings)
    ask(method, "notes")  # the run needs them after all its work
    table = asked_table(method, BitWidth.parse(cell.bits), cell.protocol)
    given, dense = suite.calibration_images, task.dense
    return Part(
        method=MethodSpec(
            cell.choice.name,
            cls.version,
            identity_of(method.parameters, cls.profiles),
            method.transforms,
            method.table_changes,
        ),
        fidelity=cls.fidelity,
        family=cls.family,
        table=table if cell.scope is None else table.with_scope(cell.scope),
        images=calibration_images(cls, cell.protocol, given, dense),
    )

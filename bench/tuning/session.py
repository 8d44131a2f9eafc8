"""A search from its options to its suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.execution.devices import check_device, core_count
from vit_ptq_bench.bench.execution.lock import lock
from vit_ptq_bench.bench.execution.run import prepare_process
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.answers import ask
from vit_ptq_bench.bench.planning.subject import prepared_task, scope_of
from vit_ptq_bench.bench.planning.tune_options import TuneOptions
from vit_ptq_bench.bench.records.files import prepare, write_atomically
from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY
from vit_ptq_bench.bench.tuning.judge import Judge, objective_of
from vit_ptq_bench.bench.tuning.search import Objective, best, search
from vit_ptq_bench.bench.tuning.space import Space, space_of
from vit_ptq_bench.bench.tuning.suite_file import suite_name, suite_text
from vit_ptq_bench.bench.tuning.trials import Trial, TrialFile
from vit_ptq_bench.methods.quantization.bits import BitWidth
from vit_ptq_bench.tasks import Task

Tell = Callable[[Sequence[Trial]], None]
"""Called with all trials before the first new one, and after each."""


@dataclass(frozen=True)
class Plan:
    """A search that can begin.

    Attributes:
        task: whose model it is.
        model: its name.
        options: what was asked for.
        space: what can be tried, of which method.
        objective: what is compared.
        folder: of trials and suite.
    """

    task: Task
    model: str
    options: TuneOptions
    space: Space
    objective: Objective
    folder: Path

    @property
    def count(self) -> int:
        """Trials that there will be at most."""
        return min(self.options.trials, self.space.size)


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Attributes:
        best: the best trial.
        default: the trial of the method as it is.
        suite: the file of the suite.
    """

    best: Trial
    default: Trial
    suite: Path


def planned(
    methods: Sequence[str], task: str, model: str, options: TuneOptions, words: Mapping[str, Any]
) -> Plan:
    """Return a search; nothing is loaded or written yet.

    Args:
        methods: names, at least one, each once.
        task, model: names.
        options: what else was asked for.
        words: what the command line says, with the options of the task.

    Raises:
        BenchError: something was asked for that does not exist, or there is nothing to choose.
        MethodError: a bit width of the wrong form.
    """
    check_device(options.device)
    made = prepared_task(task, model, options, words)
    classes = [registry.method_class(name) for name in dict.fromkeys(methods)]
    for cls in classes:
        if cls.fidelity == REFERENCE_FIDELITY:
            raise BenchError(f"{cls.name} quantizes nothing, so there is nothing to tune")
    sizes = sorted(set(options.calibration_sizes))
    space = space_of(classes, BitWidth.parse(options.bits), sizes, options.parameters)
    folder = options.output or Path("output") / suite_name(space.methods, model, options.bits)
    return Plan(made, model, options, space, objective_of(options.by, made), folder)


def carried_out(plan: Plan, tell: Tell) -> Tuned:
    """Make the trials that are missing, and write the suite of the best one.

    Args:
        plan: the search.
        tell: is told how it goes.

    Raises:
        BenchError: the folder cannot be written, is in use or holds another search; no trial has a value.
        MethodError: the method cannot quantize the model.
        TaskError: data or weights are missing or wrong.
    """
    prepare(plan.folder)
    with lock(plan.folder):
        file = TrialFile(plan.folder, _facts(plan), plan.space)
        trials = file.read()[: plan.options.trials]
        tell(trials)

        def keep(found: Sequence[Trial]) -> None:
            file.write(found)
            tell(found)

        if len(trials) < plan.count:
            trials = _searched(plan, trials, keep)
        return _written(plan, trials)


def _searched(plan: Plan, trials: Sequence[Trial], keep: Tell) -> list[Trial]:
    options = plan.options
    threads = 1 if plan.task.small else core_count()
    prepare_process(options.seed, threads)
    loaded = plan.task.load_model(plan.model)
    judge = Judge(plan.space.methods, plan.task, loaded, options, threads)
    return search(plan.space, plan.objective, judge, trials, plan.count, options.seed, keep)


def _facts(plan: Plan) -> dict[str, Any]:
    """All that decides a trial."""
    task, options = plan.task, plan.options
    images = max(options.calibration_sizes) + options.held_out
    return {
        "methods": {name: cls.version for name, cls in plan.space.methods.items()},
        "task": {"name": task.name, "version": task.version, "data": ask(task, "data_id")},
        "model": {"name": plan.model, "weights": ask(task, "weights_id", plan.model)},
        "images": {
            "held out": options.held_out,
            "drawn": ask(task, "calibration_id", images, options.seed),
        },
        "bits": options.bits,
        "scope": scope_of(task, options),
        "seed": options.seed,
        "by": options.by,
        "dimensions": [asdict(one) for one in plan.space.dimensions],
    }


def _written(plan: Plan, trials: Sequence[Trial]) -> Tuned:
    """Write the suite of the best trial.

    Raises:
        BenchError: none has a value.
    """
    found = best(trials, plan.objective)
    if found is None or found.value is None:
        raise BenchError(f"all {len(trials)} trials were refused: {trials[0].message}")
    options = plan.options
    value = plan.objective.shown(found.value)
    words = f"best of {len(trials)} trials of bench tune: {plan.objective.name} {value}"
    facts = {
        "task": plan.task.name,
        "model": plan.model,
        "bits": options.bits,
        "seed": options.seed,
        "scope": scope_of(plan.task, options),
    }
    path = plan.folder / f"{suite_name(plan.space.methods, plan.model, options.bits)}.toml"
    path_text = suite_text(found.configuration, words, facts)
    write_atomically(path, path_text.encode())
    return Tuned(found, trials[0], path)

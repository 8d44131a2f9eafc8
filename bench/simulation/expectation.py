"""Hours and memory that a plan would take, from records of runs like its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.spec import REFERENCE_METHOD, RunSpec, canonical_json
from vit_ptq_bench.bench.simulation.costs import Cost, Costs, source_of
from vit_ptq_bench.bench.simulation.schedule import Piece, scheduled
from vit_ptq_bench.bench.simulation.simulation import COCO, IMAGENET
from vit_ptq_bench.bench.simulation.speeds import Speed, Speeds
from vit_ptq_bench.bench.simulation.usual import usual_costs, usual_peaks
from vit_ptq_bench.tasks import TaskOptions

Model = tuple[str, str]
"""Names of a task and of a model of it."""

FULL_PRECISION = Cost(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Hours:
    """How long runs would take.

    Attributes:
        work: seconds of all runs, one after the other.
        elapsed: seconds with so many at a time as were asked about.
        longest: the run that takes longest, and its seconds.
        guessed: runs of a method, or with settings, that no record has.
        speeds: full precision of each model.
        usual: whether methods' costs are those that the package brings, for no record tells any.
    """

    work: float
    elapsed: float
    longest: tuple[Run, float]
    guessed: int
    speeds: Mapping[Model, Speed]
    usual: bool = False


def expected_hours(
    runs: Sequence[Run],
    tasks: Mapping[str, TaskOptions],
    records: Sequence[Record],
    at_a_time: int,
    probed: Mapping[Model, float],
) -> Hours:
    """Return how long runs would take.

    A run's seconds are its method's F of calibration times its images, and its evaluation, both beside the
    model's seconds in full precision.

    Args:
        runs: at least one.
        tasks: their options, by the name of the task.
        records: with the seconds of such runs.
        at_a_time: runs.
        probed: images per second of models in full precision, of the device that is asked about; the speed
            of others follows from their operations. Empty: as on the records' machines.

    Raises:
        BenchError: nothing is known of the speed of a model.
    """
    costs = Costs(records, usual_costs(tasks_of(runs)))
    speeds = _speeds({_model(run.spec) for run in runs}, tasks, costs, probed)
    made = [_cost(costs, run) for run in runs]
    seconds = [
        _seconds(run, cost, speeds[_model(run.spec)].seconds)
        for run, cost in zip(runs, made, strict=True)
    ]
    places = {run.run_id: place for place, run in enumerate(runs)}
    pieces = [
        Piece(spent, places.get(run.reference) if run.reference else None)
        for run, spent in zip(runs, seconds, strict=True)
    ]
    schedule = scheduled(pieces, at_a_time)
    longest = max(range(len(runs)), key=seconds.__getitem__)
    guessed = sum(not cost.narrow for cost in made)
    spent = (runs[longest], seconds[longest])
    return Hours(schedule.busy, schedule.makespan, spent, guessed, speeds, costs.usual)


def tasks_of(runs: Sequence[Run]) -> set[str]:
    """Return the names of the runs' tasks."""
    return {run.spec.task.name for run in runs}


def usual_peak(runs: Sequence[Run], kind: str) -> tuple[Run, float] | None:
    """Return the run that takes most memory, and its peak in MB, as the package itself tells.

    Args:
        runs: of one kind of device.
        kind: of device, ``cpu`` or ``cuda``.

    Returns:
        None where it tells of none of the runs.
    """
    peaks = usual_peaks()
    known = [
        (run, peak)
        for run in runs
        if (peak := peaks.get((kind, *_model(run.spec), run.spec.method.name)))
    ]
    return max(known, key=lambda one: one[1], default=None)


def expected_peak(runs: Sequence[Run], records: Sequence[Record]) -> tuple[Run, float] | None:
    """Return the run that takes most memory, and its peak in MB, as runs of its method and model did.

    Args:
        runs: of one kind of device.
        records: of the same kind of device.

    Returns:
        None where no record tells of any of the runs.
    """
    peaks: dict[tuple[str, ...], float] = defaultdict(float)
    for record in records:
        for key in _alike(record.spec):
            peaks[key] = max(peaks[key], record.peak_memory_mb or 0.0)
    known = [
        (run, peak)
        for run in runs
        if (peak := next((peaks[key] for key in _alike(run.spec) if peaks.get(key)), None))
    ]
    return max(known, key=lambda one: one[1], default=None)


def _alike(spec: RunSpec) -> list[tuple[str, ...]]:
    """What runs share that take about the same memory, the narrowest first."""
    model, images = _model(spec), str(spec.calibration.images)
    method = spec.method.name
    return [
        (*model, method, canonical_json(spec.method.settings), images, str(spec.scope)),
        (*model, method, images),
        (*model, method),
    ]


def _model(spec: RunSpec) -> Model:
    return spec.task.name, spec.model.name


def _speeds(
    models: set[Model],
    tasks: Mapping[str, TaskOptions],
    costs: Costs,
    probed: Mapping[Model, float],
) -> dict[Model, Speed]:
    found = {}
    for task in {name for name, _ in models}:
        given = {model: speed for (of, model), speed in probed.items() if of == task}
        own = Speeds(given, costs.seconds_per_image(), registry.make_task(task, tasks[task]))
        for name, model in sorted(models):
            if name == task:
                found[name, model] = _speed(own, model)
    return found


def _speed(speeds: Speeds, model: str) -> Speed:
    """The error of `Speeds` names an option of `bench simulate`, which a run does not have."""
    try:
        return speeds.of(model)
    except BenchError as error:
        raise BenchError(
            f"no record tells how fast {model} is; --probe measures it here"
        ) from error


def _cost(costs: Costs, run: Run) -> Cost:
    spec = run.spec
    if spec.method.name == REFERENCE_METHOD:
        return FULL_PRECISION
    return costs.of(spec.method, source_of(spec), spec.calibration.images, spec.bits)


def _seconds(run: Run, cost: Cost, per_image: float) -> float:
    spec = run.spec
    usual = COCO if registry.tasks()[spec.task.name].dense else IMAGENET
    judged = run.evaluated or spec.task.limit or usual
    passes = cost.passes * spec.calibration.images + cost.evaluation * judged
    return passes * per_image + cost.rest


def probed_speed(
    name: str, model: str, options: TaskOptions, device: str, threads: int
) -> tuple[Model, float]:
    """Return how many images per second a model judges on this machine in full precision.

    Raises:
        BenchError, TaskError: the model cannot be loaded, or the device computes nothing.
    """
    from vit_ptq_bench.bench.simulation.probe import images_per_second

    try:
        return (name, model), images_per_second(name, model, options, device, threads)
    except RuntimeError as error:
        raise BenchError(f"--probe: {model} cannot be run on {device} ({error})") from error

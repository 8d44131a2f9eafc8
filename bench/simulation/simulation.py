"""From suites and records to a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vit_ptq_bench.bench.planning.plan import Cell, Part, expand, part_of
from vit_ptq_bench.bench.planning.simulate_options import SimulateOptions
from vit_ptq_bench.bench.planning.size import Say
from vit_ptq_bench.bench.planning.suite import Suite
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.spec import canonical_json
from vit_ptq_bench.bench.simulation.costs import Cost, Costs
from vit_ptq_bench.bench.simulation.schedule import Piece, Schedule, scheduled
from vit_ptq_bench.bench.simulation.speeds import Speed, Speeds
from vit_ptq_bench.tasks import Task, TaskOptions

IMAGENET, COCO = 50_000, 5_000
"""Images of the validation sets."""


@dataclass
class MethodShare:
    """What a method takes of a sweep.

    Attributes:
        runs: how many.
        passes: calibration in F, summed over runs.
        evaluation: seconds per evaluation image beside full precision's, summed over runs.
        seconds: of all its runs, evaluation included.
        guessed: runs whose cost is that of other settings, or of other methods.
    """

    runs: int = 0
    passes: float = 0.0
    evaluation: float = 0.0
    seconds: float = 0.0
    guessed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "runs": self.runs,
            "calibration_passes": round(self.passes / self.runs, 2),
            "evaluation": round(self.evaluation / self.runs, 2),
            "hours": round(self.seconds / 3600, 3),
            "guessed": self.guessed,
        }


@dataclass
class Simulation:
    """A sweep that was not run.

    Attributes:
        schedule: on the devices asked for.
        models: how fast each is.
        methods: what each takes, full precision included.
        longest: the run that takes longest, in words, and its seconds.
    """

    schedule: Schedule
    models: dict[str, Speed]
    methods: dict[str, MethodShare]
    longest: tuple[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; hours and shares of one."""
        schedule = self.schedule
        return {
            "devices": schedule.devices,
            "runs": sum(share.runs for share in self.methods.values()),
            "makespan_hours": round(schedule.makespan / 3600, 3),
            "busy_hours": round(schedule.busy / 3600, 3),
            "least_hours": round(schedule.bound / 3600, 3),
            "idle_share": round(schedule.idle, 4),
            "longest": {"run": self.longest[0], "hours": round(self.longest[1] / 3600, 3)},
            "models": {
                name: {"images_per_second": round(1 / speed.seconds, 2), "from": speed.source}
                for name, speed in self.models.items()
            },
            "methods": {name: share.to_dict() for name, share in self.methods.items()},
        }


class _Timed(NamedTuple):
    piece: Piece
    words: str


@dataclass
class _Making:
    """Runs of suites, each once, with their seconds."""

    costs: Costs
    options: SimulateOptions
    runs: list[_Timed] = field(default_factory=list)
    models: dict[str, Speed] = field(default_factory=dict)
    methods: dict[str, MethodShare] = field(default_factory=dict)
    seen: set[tuple[object, ...]] = field(default_factory=set)
    references: dict[tuple[str, str], int] = field(default_factory=dict)

    def add_suite(self, suite: Suite, options: TaskOptions, say: Say) -> None:
        task, models, cells = expand(suite, options, say)
        speeds = Speeds(self.options.speeds, self.costs.seconds_per_image(), task)
        usual = COCO if task.dense else IMAGENET
        images = suite.limit or self.options.evaluation_images or usual
        parts: dict[tuple[str | None, ...], Part] = {}
        for model in models:
            speed = self.models[model] = speeds.of(model)
            reference = self._reference(task, model, images * speed.seconds)
            for cell in cells:
                choice = cell.choice
                key = (choice.name, choice.variant, cell.bits, cell.protocol, cell.scope)
                part = parts.setdefault(key, parts.get(key) or part_of(suite, task, cell))
                self._add(task, model, cell, part, reference, (speed.seconds, images))

    def _reference(self, task: Task, model: str, seconds: float) -> int:
        key = (task.name, model)
        if key not in self.references:
            self.references[key] = len(self.runs)
            self.runs.append(_Timed(Piece(seconds), f"{model} in full precision"))
            self._count("fp32", Cost(0.0, 1.0, 0.0), seconds)
        return self.references[key]

    def _add(
        self,
        task: Task,
        model: str,
        cell: Cell,
        part: Part,
        reference: int,
        work: tuple[float, int],
    ) -> None:
        settings = canonical_json(part.method.settings)
        place = (cell.bits, cell.protocol, cell.scope, cell.seed, cell.source)
        key = (task.name, model, part.method.name, settings, *place)
        if key in self.seen:
            return
        self.seen.add(key)
        per_image, images = work
        cost = self.costs.of(part.method, cell.source, part.images, cell.bits)
        calibration = cost.passes * part.images * per_image
        seconds = calibration + cost.evaluation * images * per_image + cost.rest
        words = f"{model} {part.method.name} {cell.bits} {cell.protocol}"
        self.runs.append(_Timed(Piece(seconds, reference), words))
        self._count(part.method.name, cost, seconds)

    def _count(self, method: str, cost: Cost, seconds: float) -> None:
        share = self.methods.setdefault(method, MethodShare())
        share.runs += 1
        share.passes += cost.passes
        share.evaluation += cost.evaluation
        share.seconds += seconds
        share.guessed += not cost.narrow


def simulated(
    suites: Sequence[Suite],
    tasks: Mapping[str, TaskOptions],
    records: Sequence[Record],
    options: SimulateOptions,
    say: Say,
) -> Simulation:
    """Return how suites would run on devices as ``options`` say.

    A run's seconds are its method's F of calibration times its images, and its evaluation, both beside the
    model's seconds in full precision. For another number of calibration images than was measured the cost
    grows in proportion, which is too much for methods that learn for a number of iterations.

    Args:
        suites: with what the command line says instead.
        tasks: their options, by the name of the task; no data are read.
        records: with the seconds.
        options: devices and speeds.
        say: takes the suites' sizes.

    Raises:
        BenchError: a suite that cannot be planned, a speed that is not known, records without seconds.
    """
    making = _Making(Costs(records), options)
    for suite in suites:
        making.add_suite(suite, tasks[suite.task], say)
    schedule = scheduled([run.piece for run in making.runs], options.devices)
    longest = max(making.runs, key=lambda run: run.piece.seconds)
    found = (longest.words, longest.piece.seconds)
    return Simulation(schedule, making.models, making.methods, found)

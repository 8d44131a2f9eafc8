"""Seconds of a full-precision image of models that nobody has measured, from those of measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.answers import ask
from vit_ptq_bench.tasks import Task, TaskOptions

Measured = Mapping[tuple[str, str], float]
"""Seconds of an image in full precision by task and model."""


class Speed(NamedTuple):
    """How fast a model is.

    Attributes:
        seconds: of an image in full precision.
        source: ``given``, ``records``, or ``operations``: by its multiply-accumulates.
    """

    seconds: float
    source: str


class Speeds:
    """Seconds per image of any model.

    Args:
        given: images per second by model, of the device that is asked about. Where there are any, the
            records' seconds, of another machine, do not count.
        measured: seconds of the records.
        task: knows the models that are ``given``.

    Raises:
        BenchError: a model that is given is none of the task's.
    """

    def __init__(self, given: Mapping[str, float], measured: Measured, task: Task) -> None:
        for name in given:
            if not ask(task, "knows_model", name):
                raise BenchError(f"--speed: task {task.name} has no model {name!r}")
        self._task = task
        self._given = {name: 1 / value for name, value in given.items()}
        self._measured = {} if given else measured
        self._per_operation: float | None = None

    def of(self, model: str) -> Speed:
        """Return how fast a model of the task is.

        Raises:
            BenchError: it was neither given nor measured, and its operations or those of all measured
                models are not known.
        """
        if model in self._given:
            return Speed(self._given[model], "given")
        if (known := self._measured.get((self._task.name, model))) is not None:
            return Speed(known, "records")
        operations = ask(self._task, "operations", model)
        if operations is None:
            raise BenchError(
                f"nothing is known of the speed of {model}: say it with --speed {model}=IMAGES_PER_SECOND"
            )
        return Speed(operations * self._seconds_per_operation(), "operations")

    def _seconds_per_operation(self) -> float:
        """The median over the measured models of this task, or of all tasks if it has none."""
        if self._per_operation is None:
            own = {(self._task.name, name): seconds for name, seconds in self._given.items()}
            known = {
                place: seconds / operations
                for place, seconds in {**self._measured, **own}.items()
                if (operations := self._operations(*place)) is not None
            }
            if not known:
                raise BenchError(
                    "no measured model says its multiply-accumulates: give the speed of each model with "
                    "--speed MODEL=IMAGES_PER_SECOND"
                )
            alike = [value for (task, _), value in known.items() if task == self._task.name]
            self._per_operation = median(alike or known.values())
        return self._per_operation

    def _operations(self, task: str, model: str) -> int | None:
        if task not in registry.tasks():  # of an earlier version, or a plug-in that is not here
            return None
        own = self._task if task == self._task.name else registry.make_task(task, TaskOptions())
        if not ask(own, "knows_model", model):
            return None
        operations: int | None = ask(own, "operations", model)
        return operations

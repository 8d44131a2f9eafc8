"""The registry of tasks."""

from __future__ import annotations

from vit_ptq_bench.registry import Registry
from vit_ptq_bench.tasks.api.task import Task
from vit_ptq_bench.tasks.errors import TaskError

TASKS = Registry("task", "vit_ptq_bench.tasks", ("errors",), TaskError)
"""Name -> task class."""


def register_task(cls: type[Task]) -> type[Task]:
    """Class decorator: add a task to the benchmark under its ``name``.

    Raises:
        TaskError: the class has no name or no metrics, or the name is taken.
    """
    name = getattr(cls, "name", "")
    if not name or not getattr(cls, "metrics", ()):
        raise TaskError(f"{cls.__name__} needs a name and at least one metric")
    TASKS.add(name, cls)
    return cls

"""The registry of tasks."""

from mmengine.registry import Registry

from tasks.base import Task
from tasks.errors import TaskError

TASKS = Registry("task", scope="vit_ptq_bench")
"""Name -> task class."""


def register_task(cls: type[Task]) -> type[Task]:
    """Class decorator: add a task to the benchmark under its ``name``.

    Raises:
        TaskError: the class has no name or no metrics, or the name is taken.
    """
    name = getattr(cls, "name", "")
    if not name or not getattr(cls, "metrics", ()):
        raise TaskError(f"{cls.__name__} needs a name and at least one metric")
    taken = TASKS.module_dict.get(name)
    if taken is not None:
        raise TaskError(f"task name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
    TASKS.register_module(name=name, module=cls)
    return cls

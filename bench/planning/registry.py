"""Methods and tasks by name, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import plugins
from vit_ptq_bench.bench.planning.answers import blamed
from vit_ptq_bench.bench.planning.names import unknown
from vit_ptq_bench.methods import METHODS, Method
from vit_ptq_bench.registry import Registry
from vit_ptq_bench.tasks import TASKS, Task, TaskOptions


def methods() -> Mapping[str, type[Method]]:
    """Every registered method class by name."""
    return METHODS.module_dict


def tasks() -> Mapping[str, type[Task]]:
    """Every registered task class by name."""
    return TASKS.module_dict


def method_class(name: str) -> type[Method]:
    """The method class called ``name``.

    Raises:
        BenchError: there is none; what failed to load is named as the likely cause.
    """
    found: type[Method] = _find("method", METHODS, name)
    return found


def task_class(name: str) -> type[Task]:
    """The task class called ``name``.

    Raises:
        BenchError: there is none; what failed to load is named as the likely cause.
    """
    found: type[Task] = _find("task", TASKS, name)
    return found


def make_task(name: str, options: TaskOptions) -> Task:
    """The task called ``name`` with its options.

    Raises:
        BenchError: there is no such task, or one of somebody else fails.
        TaskError: the task refuses its options.
    """
    cls = task_class(name)
    with blamed(cls, "making it"):
        return cls(options)


def is_small(task: str) -> bool:
    """Whether the models of ``task`` are so small that a run computes on one thread."""
    return task_class(task).small


def broken(kind: str) -> dict[str, plugins.Failure]:
    """What of a kind ("method" or "task") could not be loaded: name of the file or entry point -> why."""
    registry = METHODS if kind == "method" else TASKS
    registry.import_from_location()
    files = {
        module: plugins.Failure(f"{kind}s/{module}.py", error)
        for module, error in registry.broken.items()
    }
    return files | plugins.broken(kind)


def _find(kind: str, registry: Registry, name: str) -> Any:
    known = registry.module_dict
    if name in known:
        return known[name]
    failures = broken(kind)
    failure = failures.get(name) or failures.get(name.replace("-", "_"))
    if failure is not None:
        raise BenchError(
            f"{kind} {name!r} comes from {failure.origin}, which failed to load: {failure.error}"
        )
    raise unknown(kind, name, known)

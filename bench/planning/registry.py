"""Names as people type them: near matches, globs, and the two registries.

Nothing here imports torch until a registry is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.names import unknown


def methods() -> Mapping[str, Any]:
    """Every registered method class by name. Imports torch."""
    from vit_ptq_bench.methods.api.registry import METHODS

    return METHODS.module_dict


def tasks() -> Mapping[str, Any]:
    """Every registered task class by name. Imports torch."""
    from vit_ptq_bench.tasks.api.registry import TASKS

    return TASKS.module_dict


def method_class(name: str) -> Any:
    """The method class called ``name``.

    Raises:
        BenchError: there is none; a plugin that failed to load is named as the likely cause.
    """
    known = methods()
    if name not in known:
        _raise_broken("method", name)
        raise unknown("method", name, known)
    return known[name]


def task_class(name: str) -> Any:
    """The task class called ``name``.

    Raises:
        BenchError: there is none.
    """
    known = tasks()
    if name not in known:
        _raise_broken("task", name)
        raise unknown("task", name, known)
    return known[name]


def _raise_broken(kind: str, name: str) -> None:
    """Raise the load error of the entry point called ``name``, if there was one."""
    from vit_ptq_bench.bench.planning.plugins import broken

    failure = broken(kind).get(name)
    if failure is not None:
        raise BenchError(
            f"{kind} {name!r} comes from {failure.origin}, which failed to load: {failure.error}"
        )


def is_small(task: str) -> bool:
    """Whether the models of ``task`` are so small that a run computes on one thread."""
    return bool(getattr(task_class(task), "small", False))

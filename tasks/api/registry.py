"""The registry of tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vit_ptq_bench.registry import Registry
from vit_ptq_bench.tasks.api.task import Task
from vit_ptq_bench.tasks.errors import TaskError
from vit_ptq_bench.values import shown

TASKS = Registry("task", "vit_ptq_bench.tasks", ("errors",), TaskError)
"""Name -> task class."""

SCOPES = ("backbone", "full")


def register_task(cls: type[Task]) -> type[Task]:
    """Class decorator: add a task to the benchmark under its ``name``.

    Raises:
        TaskError: the class has no name or no metrics, the name is taken, it lacks a method that it must
            define, or another attribute is not what `Task` says.
    """
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise TaskError(f"a task is a subclass of Task; got {shown(cls)}")
    name = getattr(cls, "name", "")
    if not name or not getattr(cls, "metrics", ()):
        raise TaskError(f"{cls.__name__} needs a name and at least one metric")
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        raise TaskError(f"{cls.__name__} must define {', '.join(missing)}")
    check_card(cls)
    TASKS.add(name, cls)
    return cls


def check_card(cls: type[Task]) -> None:
    """Refuse attributes that records, tables and the plan could not use.

    Raises:
        TaskError: naming the attribute.
    """
    titles = cls.metric_titles
    right = {
        "name": (_is_name(cls.name), "of at most 100 letters, digits, - and _"),
        "version": (type(getattr(cls, "version", None)) is int, "a whole number"),
        "metrics": (
            _are_texts(cls.metrics) and len(set(cls.metrics)) == len(cls.metrics),
            "a tuple of texts, each once",
        ),
        "metric_titles": (
            isinstance(titles, Mapping) and _are_texts((*titles, *titles.values())),
            "a mapping of metrics to titles",
        ),
        "scopes": (
            _are_texts(cls.scopes) and set(cls.scopes) <= set(SCOPES),
            f"a tuple of {' and '.join(SCOPES)}",
        ),
        "dense": (isinstance(cls.dense, bool), "True or False"),
        "small": (isinstance(cls.small, bool), "True or False"),
        "preload": (_are_texts(cls.preload), "a tuple of names of modules"),
    }
    for attribute, (holds, words) in right.items():
        if not holds:
            found = shown(getattr(cls, attribute, None))
            raise TaskError(f"{cls.__name__}.{attribute} must be {words}; got {found}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", value))


def _are_texts(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(text, str) for text in value)

"""Tasks: data, models and metrics that quantization methods are judged by.

Every module of this package is imported here, so that a new task is one new file.
"""

import importlib
import pkgutil

from tasks.base import Evaluation, LoadedModel, Task, TaskOptions
from tasks.errors import TaskError
from tasks.registry import TASKS, register_task

_SCRIPTS = {"train_digits"}

for _module in pkgutil.iter_modules(__path__):
    if _module.name not in _SCRIPTS:
        importlib.import_module(f"tasks.{_module.name}")

__all__ = [
    "TASKS",
    "Evaluation",
    "LoadedModel",
    "Task",
    "TaskError",
    "TaskOptions",
    "register_task",
]

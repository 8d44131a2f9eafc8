"""A task from the options on the command line."""

from __future__ import annotations

import argparse
from typing import Any


def make_task(name: str, arguments: argparse.Namespace) -> Any:
    """The task called ``name``, its options from command line, config file and environment.

    Raises:
        BenchError: there is no such task, or an option is wrong.
        TaskError: the task refuses its options.
    """
    from vit_ptq_bench.bench.planning import registry
    from vit_ptq_bench.bench.planning.settings import Config
    from vit_ptq_bench.tasks.api.task import TaskOptions

    config = Config.read(arguments.config)
    return registry.task_class(name)(config.task_options(name, TaskOptions, task_flags(arguments)))


def task_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of the task that the command line gives; None where it does not."""
    return {
        "data_dir": arguments.data_dir,
        "val_labels": arguments.val_labels,
        "checkpoint": arguments.checkpoint,
        "limit": arguments.limit,
        "batch_size": arguments.batch_size,
    }

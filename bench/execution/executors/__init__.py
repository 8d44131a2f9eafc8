"""Where runs are carried out; each executor has the three calls of `api.Executor`."""

from __future__ import annotations

from math import ceil

from vit_ptq_bench.bench.execution.executors.api import Executor, Submitted
from vit_ptq_bench.bench.execution.executors.local import LocalExecutor
from vit_ptq_bench.bench.execution.executors.serial import Hear, SerialExecutor
from vit_ptq_bench.bench.execution.executors.slurm import MINUTES, SlurmExecutor, parse_settings
from vit_ptq_bench.bench.planning.settings import RunOptions

__all__ = ["Executor", "Submitted", "make_executor"]


def make_executor(options: RunOptions, sweep: str, hear: Hear) -> Executor:
    """Return the executor that the options name.

    Args:
        options: of the sweep.
        sweep: its name.
        hear: told of progress by executors that yield none of it.

    Raises:
        BenchError: it cannot be had here.
    """
    if options.executor == "serial":
        return SerialExecutor(hear)
    if options.executor == "slurm":
        minutes = ceil(options.timeout / 60) if options.timeout else MINUTES
        return SlurmExecutor(options.folder, sweep, parse_settings(options.slurm), minutes)
    return LocalExecutor()

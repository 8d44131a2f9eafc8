"""Where runs are carried out; each executor has the three calls of `api.Executor`."""

from __future__ import annotations

from vit_ptq_bench.bench.execution.executors.api import Executor, Submitted
from vit_ptq_bench.bench.execution.executors.local import LocalExecutor
from vit_ptq_bench.bench.execution.executors.serial import Hear, SerialExecutor

__all__ = ["Executor", "Submitted", "make_executor"]


def make_executor(name: str, hear: Hear) -> Executor:
    """Return the executor of a name: ``local`` or ``serial``.

    Args:
        name: of `RunOptions.executor`.
        hear: told of progress by executors that yield none of it.
    """
    return SerialExecutor(hear) if name == "serial" else LocalExecutor()

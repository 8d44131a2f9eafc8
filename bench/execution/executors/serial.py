"""Runs in the process of the sweep itself, one after the other: for a debugger."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from vit_ptq_bench.bench.execution.devices import Slot
from vit_ptq_bench.bench.execution.executors.api import Submitted
from vit_ptq_bench.bench.execution.interrupt import raise_interrupts
from vit_ptq_bench.bench.execution.limits import Limit
from vit_ptq_bench.bench.execution.messages import Job, Message, PhaseProgress

Hear = Callable[[Submitted, PhaseProgress], None]
"""Told of the progress of a run while it goes on."""


@dataclass
class _Here:
    """A run of this process."""

    job: Job
    slot: Slot
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


class SerialExecutor:
    """Carries out one job at a time, within `poll`; no time limit, and a crash of a run ends the sweep.

    Args:
        hear: see `Hear`.
    """

    def __init__(self, hear: Hear) -> None:
        self._hear = hear
        self._waiting: list[_Here] = []

    @property
    def active(self) -> Sequence[Submitted]:
        """See `Executor`."""
        return tuple(self._waiting)

    def submit(self, job: Job, slot: Slot, limit: Limit) -> Submitted:
        """See `Executor`; ``limit`` can't be kept."""
        here = _Here(job, slot)
        self._waiting.append(here)
        return here

    def poll(self, seconds: float) -> Iterator[tuple[Submitted, Message]]:
        """Carry out the job that waits longest; without one, sleep for ``seconds``.

        Raises:
            KeyboardInterrupt: somebody stops the sweep; the run leaves no record.
        """
        if not self._waiting:
            time.sleep(seconds)
            return
        here = self._waiting[0]
        here.began = time.monotonic()
        message = self._carried_out(here)
        self._waiting.remove(here)
        yield here, message

    def cancel(self) -> None:
        """See `Executor`."""
        self._waiting.clear()

    def _carried_out(self, here: _Here) -> Message:
        # Imports torch: only where runs are made in this process.
        from vit_ptq_bench.bench.execution import worker

        job, report = here.job, worker.reporter(partial(self._hear, here))
        try:
            with worker.temporary_files_in(job.scratch), raise_interrupts():
                made = worker.make_record(job, report)
            return worker.written(job, *made)
        finally:
            shutil.rmtree(here.job.scratch, ignore_errors=True)  # it may have none

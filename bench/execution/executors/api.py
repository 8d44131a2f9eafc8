"""The three calls behind which runs are carried out: submit, poll, cancel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from vit_ptq_bench.bench.execution.devices import Slot
from vit_ptq_bench.bench.execution.limits import Limit
from vit_ptq_bench.bench.execution.messages import Job, Message


class Submitted(Protocol):
    """A run that has been submitted and has not ended."""

    @property
    def job(self) -> Job:
        """What it runs."""
        ...

    @property
    def slot(self) -> Slot:
        """Where."""
        ...

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        ...


class Executor(Protocol):
    """Carries out jobs, somewhere; each writes its record itself."""

    @property
    def active(self) -> Sequence[Submitted]:
        """The runs that were submitted and have not ended."""
        ...

    def submit(self, job: Job, slot: Slot, limit: Limit) -> Submitted:
        """Take ``job``, for a slot that is free; does not wait for its end."""
        ...

    def poll(self, seconds: float) -> Iterator[tuple[Submitted, Message]]:
        """Yield what the runs say, after ``seconds`` at most if they say nothing.

        The last message of a run frees its slot.
        """
        ...

    def cancel(self) -> None:
        """End every run; they leave no record."""
        ...

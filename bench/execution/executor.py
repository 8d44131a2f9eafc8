"""Runs in processes of their own: slots, devices, timeouts, and why a process died."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from vit_ptq_bench.bench.execution.devices import Slot
from vit_ptq_bench.bench.execution.forkserver import kill_group, run_in_worker, start_method
from vit_ptq_bench.bench.execution.messages import (
    CannotWrite,
    Died,
    Finished,
    Job,
    Message,
    PhaseProgress,
)

KILL_SECONDS = 10.0
"""How long a killed process may take to go."""


@dataclass
class Active:
    """A run that has a process.

    Attributes:
        job: what it runs.
        slot: where.
        process: its process.
        connection: our end of its pipe.
        began: time of the start, in seconds of `time.monotonic`; the start of the process until it
            first speaks: the fork server may still be importing torch.
        spoken: whether the process has said anything.
        final: the last word of the process, None before it.
    """

    job: Job
    slot: Slot
    process: BaseProcess
    connection: Connection
    began: float = field(default_factory=time.monotonic)
    spoken: bool = False
    final: Finished | CannotWrite | Died | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began


class Executor:
    """Starts jobs, hands on what they report, and ends them.

    Args:
        timeout: seconds a run may take; None: as long as it likes.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._context = start_method()
        self._active: list[Active] = []

    @property
    def active(self) -> tuple[Active, ...]:
        """The runs that have a process now."""
        return tuple(self._active)

    def start(self, job: Job, slot: Slot) -> Active:
        """Start ``job`` in a process of its own on ``slot``."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=run_in_worker, args=(job, theirs), name=job.run.run_id
        )
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        active = Active(job, slot, process, ours)
        self._active.append(active)
        return active

    def poll(self, seconds: float) -> Iterator[tuple[Active, Message]]:
        """What the processes say within ``seconds``; a final message frees the run's slot."""
        wait([active.connection for active in self._active], self._wait_for(seconds))
        for active in self.active:
            yield from self._messages(active)
            if active.final is not None:
                self._end(active)
                yield active, active.final

    def cancel(self) -> None:
        """Kill every process; their runs leave no record."""
        for active in self.active:
            self._end(active)

    def _messages(self, active: Active) -> Iterator[tuple[Active, Message]]:
        """PhaseProgress messages that have arrived; the last word goes to ``active.final``."""
        try:
            while active.final is None and active.connection.poll():
                message = active.connection.recv()
                if not active.spoken:
                    active.spoken, active.began = True, time.monotonic()
                if isinstance(message, PhaseProgress):
                    yield active, message
                else:
                    active.final = message
        except (EOFError, OSError):
            active.final = self._obituary(active)
        if active.final is None and self._late(active):
            active.final = Died("timeout", "timeout", f"stopped after {self._timeout:g} seconds")

    def _late(self, active: Active) -> bool:
        return self._timeout is not None and active.spoken and active.seconds > self._timeout

    def _obituary(self, active: Active) -> Died:
        """Why a process ended without its last word."""
        active.process.join(KILL_SECONDS)
        code = active.process.exitcode
        if code is None or code >= 0:
            return Died("failed", "worker died", f"the process of the run ended with status {code}")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        if name == "SIGKILL":
            return Died(
                "oom",
                name,
                "the process of the run was killed (SIGKILL), most likely by the "
                "system for want of memory; use fewer workers or a machine with more",
            )
        return Died("failed", name, f"the process of the run was ended by {name}")

    def _end(self, active: Active) -> None:
        """Make sure the process and its children are gone; free the slot."""
        if not isinstance(active.final, (Finished, CannotWrite)):
            self._kill(active)
        active.process.join(KILL_SECONDS)
        if active.process.is_alive():  # said its last word and hangs
            self._kill(active)
            active.process.join(KILL_SECONDS)
        active.connection.close()
        self._active.remove(active)

    def _kill(self, active: Active) -> None:
        if active.process.pid is not None:
            kill_group(active.process.pid)
        active.process.kill()  # a process that has just begun has no group of its own yet

    def _wait_for(self, seconds: float) -> float:
        """``seconds``, less when a timeout comes earlier."""
        begins = [active.began for active in self._active if active.spoken]
        if self._timeout is None or not begins:
            return seconds
        earliest = min(begins) + self._timeout
        return max(0.0, min(seconds, earliest - time.monotonic() + 0.01))

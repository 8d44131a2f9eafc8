"""Runs in processes of their own: slots, devices, time limits, and why a process died."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from vit_ptq_bench.bench.execution import forkserver
from vit_ptq_bench.bench.execution.devices import Slot
from vit_ptq_bench.bench.execution.limits import START_SECONDS, STOPPED_SECONDS, Limit
from vit_ptq_bench.bench.execution.messages import (
    NO_START,
    CannotWrite,
    Died,
    Finished,
    Job,
    Message,
    PhaseProgress,
)

KILL_SECONDS = 10.0
"""How long a killed process may take to go."""

ABSENT_SECONDS = 30.0
"""Without a look at the runs for so long, this process was stopped itself: that is no time of theirs."""


@dataclass
class Active:
    """A run that has a process.

    Attributes:
        job: what it runs.
        slot: where.
        limit: how long it may take.
        process: its process.
        connection: our end of its pipe.
        launched: done when the process is there; its error when it could not be made.
        began: time of the start, in seconds of `time.monotonic`; the start of the process until it
            first speaks: the fork server may still be importing torch.
        spoken: whether the process has said anything.
        stopped: since when the process is stopped; None unless it is.
        final: the last word of the process, None before it.
    """

    job: Job
    slot: Slot
    limit: Limit
    process: BaseProcess
    connection: Connection
    launched: Future[None]
    began: float = field(default_factory=time.monotonic)
    spoken: bool = False
    stopped: float | None = None
    final: Finished | CannotWrite | Died | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    @property
    def has_process(self) -> bool:
        """Whether the process has been made."""
        return self.launched.done() and self.launched.exception() is None


class LocalExecutor:
    """Starts jobs, hands on what they report, and ends them."""

    def __init__(self) -> None:
        self._context = forkserver.start_method()
        self._active: list[Active] = []
        self._polled = time.monotonic()
        self._server_stopped: float | None = None

    @property
    def active(self) -> tuple[Active, ...]:
        """The runs that have a process now."""
        return tuple(self._active)

    def submit(self, job: Job, slot: Slot, limit: Limit) -> Active:
        """Start ``job`` in a process of its own on ``slot``; returns before the process is there."""
        forkserver.ensure_server()
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=forkserver.run_in_worker, args=(job, theirs), name=job.run.run_id
        )

        def launch() -> None:
            try:
                process.start()  # waits for the fork server, which may never answer
            finally:
                theirs.close()  # so that the end of the process is the end of the pipe

        active = Active(job, slot, limit, process, ours, _in_background(launch))
        self._active.append(active)
        return active

    def poll(self, seconds: float) -> Iterator[tuple[Active, Message]]:
        """What the processes say within ``seconds``; a final message frees the run's slot."""
        self._forgive_absence()
        wait([active.connection for active in self._active], self._wait_for(seconds))
        self._watch_server()
        for active in self.active:
            yield from self._messages(active)
            if active.final is not None:
                self._end(active)
                yield active, active.final

    def cancel(self) -> None:
        """Kill every process; their runs leave no record."""
        if forkserver.is_stopped(forkserver.server_pid()):
            forkserver.kill_server()
        for active in self.active:
            self._end(active)

    def _forgive_absence(self) -> None:
        """Take the time that this process was stopped (Ctrl-Z, a debugger) from that of the runs."""
        now = time.monotonic()
        absent, self._polled = now - self._polled, now
        if absent > ABSENT_SECONDS:
            for active in self._active:
                active.began += absent

    def _watch_server(self) -> None:
        """Kill a fork server that stays stopped: the next start makes another one."""
        pid = forkserver.server_pid()
        self._server_stopped = _since(self._server_stopped, forkserver.is_stopped(pid))
        if _is_over(self._server_stopped):
            forkserver.kill_server()
            self._server_stopped = None

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
        if active.final is None:
            active.final = self._verdict(active)

    def _verdict(self, active: Active) -> Died | None:
        """Why a process that says nothing has to end; None while it may go on."""
        if active.spoken and active.seconds > active.limit.seconds:
            return Died("timeout", "timeout", active.limit.reason)
        if not active.spoken and active.seconds > START_SECONDS:
            if not active.launched.done():
                forkserver.kill_server()
            waited = f"its process said nothing within {START_SECONDS:g} seconds of its start"
            return Died("timeout", NO_START, waited)
        pid = active.process.pid if active.has_process else None
        active.stopped = _since(active.stopped, forkserver.is_stopped(pid))
        if _is_over(active.stopped):
            return Died(
                "failed",
                "stopped",
                "the process of the run was stopped by a signal and not continued within "
                f"{STOPPED_SECONDS:g} seconds",
            )
        return None

    def _obituary(self, active: Active) -> Died:
        """Why a process ended without its last word.

        Raises:
            Exception: it could not even be made, for a reason that is a defect.
        """
        error = active.launched.exception()  # known at once: the pipe is closed after the launch
        if error is not None:
            return _not_started(error)
        active.process.join(KILL_SECONDS)
        code = active.process.exitcode
        if code is None or code >= 0:
            status = "a status that nobody knows" if code is None else f"status {code}"
            return Died("failed", "worker died", f"the process of the run ended with {status}")
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
        """Make sure the process and its children are gone, and its temporary files; free the slot."""
        if active.has_process:
            self._end_process(active)
        active.connection.close()  # a process that is made only now ends at its first word
        shutil.rmtree(active.job.scratch, ignore_errors=True)  # it may have none
        self._active.remove(active)

    def _end_process(self, active: Active) -> None:
        if not isinstance(active.final, (Finished, CannotWrite)):
            self._kill(active)
        active.process.join(KILL_SECONDS)
        if active.process.is_alive():  # said its last word and hangs
            self._kill(active)
            active.process.join(KILL_SECONDS)
        if active.process.is_alive():  # it is the fork server that does not tell of its end
            forkserver.kill_server()

    def _kill(self, active: Active) -> None:
        if active.process.pid is not None:
            forkserver.kill_group(active.process.pid)
        active.process.kill()  # a process that has just begun has no group of its own yet

    def _wait_for(self, seconds: float) -> float:
        """``seconds``, less when a time limit comes earlier."""
        ends = [active.began + active.limit.seconds for active in self._active if active.spoken]
        earliest = min(ends, default=float("inf")) - time.monotonic() + 0.01
        return max(0.0, min(seconds, earliest))


def _in_background(work: Callable[[], None]) -> Future[None]:
    """Do ``work`` in a thread that keeps no process alive; the future has its end or its error."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # belongs to whoever asks the future
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return future


def _not_started(error: BaseException) -> Died:
    """The end of a run whose process could not be made.

    Raises:
        Exception: ``error``, unless it says that the system or the fork server failed.
    """
    if not isinstance(error, (EOFError, OSError)):
        raise error
    reason = f": {error}" if isinstance(error, OSError) else ", as the fork server ended"
    return Died("failed", NO_START, f"no process could be started for the run{reason}")


def _since(before: float | None, lasts: bool) -> float | None:
    """Since when a state lasts, given since when it did at the last look."""
    if not lasts:
        return None
    return time.monotonic() if before is None else before


def _is_over(stopped: float | None) -> bool:
    """Whether a process is stopped for too long."""
    return stopped is not None and time.monotonic() - stopped > STOPPED_SECONDS

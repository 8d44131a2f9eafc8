"""The process of one run: nothing the run patches, allocates or seeds outlives it.

The fork server imports this module once, so it imports what every run needs (torch, timm, the
built-in methods and tasks), and starts neither threads nor CUDA.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_ptq_bench.bench.execution.messages import CannotWrite, Finished, Job, PhaseProgress
from vit_ptq_bench.bench.execution.run import GateMissed, Report, Skip, execute
from vit_ptq_bench.bench.planning import plugins
from vit_ptq_bench.bench.records.record import Record, new_record
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.methods.quantization.calibration.memory import is_out_of_memory

REPORT_EVERY = 0.1
"""Seconds between two progress messages of one phase."""


TRACEBACK_LINES = 40


def main(job: Job, connection: Connection) -> None:
    """Entry point of the process: run ``job``, write its record, say so over ``connection``."""
    try:
        detach(job)
        connection.send(PhaseProgress("start", 0, 0))
        record, outcomes = make_record(job, reporter(connection))
        written = Store(job.output).write(record, outcomes)
    except OSError as error:  # those of the run itself are in the record
        connection.send(CannotWrite(error.strerror or str(error)))
        return
    if written.conflict:
        connection.send(Finished("failed", f"other numbers than before, see {written.path.name}"))
        return
    connection.send(Finished(record.status, (record.error or {}).get("message", "")))


def make_record(job: Job, report: Report) -> tuple[Record, NDArray[np.bool_] | None]:
    """Run ``job``; its record and, if it went well, the per-image outcomes."""
    run = job.run
    known: dict[str, Any] = {"started": now(), "variant": run.variant}
    try:
        plugins.load(job.plugins)
        outcomes = execute(job, report, known)
        record = new_record(run.spec, status="ok", fidelity=run.fidelity, finished=now(), **known)
        return record, outcomes
    except Exception as error:
        known |= failure(error)
    return new_record(run.spec, fidelity=run.fidelity, finished=now(), **known), None


def detach(job: Job) -> None:
    """Become a process group of our own, end with the parent, and print into the log file.

    The group lets the parent end data-loader processes too, and keeps a Ctrl-C in the terminal
    away: the parent answers it.
    """
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork server ignores it
    threading.Thread(target=end_with_parent, daemon=True).start()
    job.log_file.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(job.log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)
    faulthandler.enable()


def end_with_parent() -> None:
    """Wait for the sweep's process to end, however it ends, and end this process group."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    kill_group(os.getpid())


def kill_group(pid: int) -> None:
    """Kill the process ``pid`` and the processes it started."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        pass


def reporter(connection: Connection) -> Report:
    """A progress callback that sends at most some ten messages a second."""
    last_phase, last_time = "", 0.0

    def report(phase: str, done: int, total: int) -> None:
        nonlocal last_phase, last_time
        at = time.monotonic()
        if phase == last_phase and at - last_time < REPORT_EVERY:
            return
        last_phase, last_time = phase, at
        connection.send(PhaseProgress(phase, done, total))

    return report


def failure(error: Exception) -> dict[str, Any]:
    """Status and error of a record for an exception."""
    if isinstance(error, Skip):
        return {"status": "skipped", "error": {"type": "unsupported", "message": str(error)}}
    if isinstance(error, GateMissed):
        return {"status": "failed", "error": {"type": "full-precision gate", "message": str(error)}}
    lines = traceback.format_exception(error)
    return {
        "status": "oom" if is_out_of_memory(error) else "failed",
        "error": {
            "type": type(error).__name__,
            "message": str(error) or type(error).__name__,
            "traceback": "".join(lines).splitlines()[-TRACEBACK_LINES:],
        },
    }


def now() -> str:
    """UTC time, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")

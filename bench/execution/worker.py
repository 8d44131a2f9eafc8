"""The process of one run: nothing the run patches, allocates or seeds outlives it.

The fork server imports this module once, so it imports what every run needs (torch, timm, the
built-in methods and tasks), and starts neither threads nor CUDA.
"""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from multiprocessing.connection import Connection
from pathlib import Path

import timm  # noqa: F401  for the fork server, which has to be ready for every task

from vit_ptq_bench.bench.execution.forkserver import kill_group
from vit_ptq_bench.bench.execution.messages import CannotWrite, Finished, Job, PhaseProgress
from vit_ptq_bench.bench.execution.run import Report, execute
from vit_ptq_bench.bench.records.outcomes import Outcomes, Replicates
from vit_ptq_bench.bench.records.record import Record, new_record, now
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.tasks.storage import kept

REPORT_EVERY = 0.1
"""Seconds between two progress messages of one phase."""


def main(job: Job, connection: Connection) -> None:
    """Entry point of the process: run ``job``, write its record, say so over ``connection``."""
    try:
        detach(job)
        connection.send(PhaseProgress("start", 0, 0))
        message = written(job, *make_record(job, reporter(connection.send)))
    except OSError as error:  # of the log; those of the run itself are in the record
        message = CannotWrite(error.strerror or str(error))
    connection.send(message)


def written(
    job: Job, record: Record, outcomes: Outcomes | None, replicates: Replicates | None
) -> Finished | CannotWrite:
    """Write what `make_record` has returned; what to say of it in the end."""
    try:
        place = Store(job.output).write(record, outcomes, replicates)
    except OSError as error:
        return CannotWrite(error.strerror or str(error))
    if place.conflict:
        return Finished("failed", f"other numbers than before, see {place.path.name}")
    return Finished(record.status, (record.error or {}).get("message", ""))


def make_record(job: Job, report: Report) -> tuple[Record, Outcomes | None, Replicates | None]:
    """Run ``job``; its record and, if it went well, the per-image outcomes and replicates."""
    made = execute(job, report)
    known = {item.name: getattr(made, item.name) for item in fields(made)}
    outcomes, replicates = known.pop("outcomes"), known.pop("replicates")
    run = job.run
    record = new_record(
        run.spec,
        fidelity=run.fidelity,
        family=run.family,
        variant=run.variant,
        finished=now(),
        **known,
    )
    return (record, outcomes, replicates) if record.ok else (record, None, None)


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
        if isinstance(stream, io.TextIOWrapper):  # what a method prints fails no run
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    os.close(log)
    faulthandler.enable()
    keep_temporary_files_in(job.scratch)


def keep_temporary_files_in(folder: Path) -> None:
    """Have temporary files go with the run, however it ends; what is kept for later ones stays elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    kept.lasting_folder = Path(tempfile.gettempdir())
    tempfile.tempdir = str(folder)


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """`keep_temporary_files_in` while the block lasts."""
    before = tempfile.tempdir, kept.lasting_folder
    try:
        keep_temporary_files_in(folder)
        yield
    finally:
        tempfile.tempdir, kept.lasting_folder = before


def end_with_parent() -> None:
    """Wait for the sweep's process to end, however it ends, and end this process group."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    kill_group(os.getpid())


def reporter(send: Callable[[PhaseProgress], None]) -> Report:
    """A progress callback that sends at most some ten messages a second."""
    last_phase, last_time = "", 0.0

    def report(phase: str, done: int, total: int) -> None:
        nonlocal last_phase, last_time
        at = time.monotonic()
        if phase == last_phase and at - last_time < REPORT_EVERY:
            return
        last_phase, last_time = phase, at
        send(PhaseProgress(phase, done, total))

    return report

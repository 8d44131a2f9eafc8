"""How the processes of runs are started and ended. Free of torch, so that the fork server warms up early."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from vit_ptq_bench.bench.execution.messages import Job

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals by which a user ends a sweep; the sweep's process alone answers them."""

WORKER = "vit_ptq_bench.bench.execution.worker"
"""The module of a run's process; it imports torch."""


@cache
def start_method(*modules: str) -> Any:
    """The multiprocessing context: a fork server that has torch imported on Linux, else spawn.

    Plain fork would copy this process with its threads, and CUDA cannot live through that. The
    first call starts the server, which imports torch and ``modules`` while we go on.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WORKER, *modules])
    # A Ctrl-C in the terminal and a SIGTERM to the process group (timeout(1), batch systems) must
    # not end the server under our runs: a signal ignored here stays ignored there.
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return context


def run_in_worker(job: Job, connection: Connection) -> None:
    """Entry point of a run's process, which the sweep's process can name without importing torch."""
    importlib.import_module(WORKER).main(job, connection)


def kill_group(pid: int) -> None:
    """Kill the process ``pid`` and the processes it started."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        pass

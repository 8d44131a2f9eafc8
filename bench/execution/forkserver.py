"""How the processes of runs are started and ended. Free of torch, so that the fork server warms up early."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.execution import scratch
from vit_ptq_bench.bench.execution.messages import Job
from vit_ptq_bench.bench.execution.server import PARENT, STOPS

SERVER = "vit_ptq_bench.bench.execution.server"
"""The module that ties the fork server's life to ours."""

WORKER = "vit_ptq_bench.bench.execution.worker"
"""The module of a run's process; it imports torch."""

HAS_SERVER = sys.platform.startswith("linux")
"""Whether processes are forked from a server; elsewhere each is spawned."""


def warm_up(*modules: str) -> None:
    """Start the fork server, which imports torch and ``modules`` while we go on; nothing without one."""
    if HAS_SERVER:
        start_method().set_forkserver_preload([SERVER, WORKER, *modules])
        ensure_server()


def start_method() -> Any:
    """The multiprocessing context: a fork server that has torch imported on Linux, else spawn.

    Plain fork would copy this process with its threads, and CUDA cannot live through that.
    """
    return multiprocessing.get_context("forkserver" if HAS_SERVER else "spawn")


def ensure_server() -> None:
    """Start the fork server unless it lives: the first one, or another for one that was killed."""
    if not HAS_SERVER:
        return
    from multiprocessing import forkserver

    with _inherited():
        forkserver.ensure_running()


@contextmanager
def _inherited() -> Iterator[None]:
    """What a process that is started in the block has from us.

    A Ctrl-C in the terminal and a SIGTERM to the process group (timeout(1), batch systems) must not end
    the server under our runs: it starts with those signals blocked, until it ignores them. Ignored by us
    meanwhile they would be lost, and the sweep would not stop; blocked they wait. Its socket lies in a
    folder that goes with us, however we end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    lasting = tempfile.tempdir
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        tempfile.tempdir = str(scratch.own_folder())
        os.environ[PARENT] = str(os.getpid())
        resource_tracker.ensure_running()  # it unblocks some of them when it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        yield
    finally:
        os.environ.pop(PARENT, None)
        tempfile.tempdir = lasting
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # last: what waited may raise here


def server_pid() -> int | None:
    """The process of the fork server; None without one."""
    if not HAS_SERVER:
        return None
    from multiprocessing import forkserver

    # The standard library tells nobody; a server that it keeps elsewhere is not watched.
    server = getattr(forkserver, "_forkserver", None)
    return getattr(server, "_forkserver_pid", None)


def kill_server() -> None:
    """Kill the fork server, which does not answer; the processes that it forked live on."""
    pid = server_pid()
    if pid is None:
        return
    try:
        os.kill(pid, signal.SIGKILL)
        # Until it is gone, `ensure_server` would take it for one that lives.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except (ProcessLookupError, ChildProcessError):
        pass  # it has ended already


def is_stopped(pid: int | None) -> bool:
    """Whether a process was stopped by a signal (SIGSTOP, SIGTSTP); False where the system does not tell."""
    if pid is None:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state == "T"


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

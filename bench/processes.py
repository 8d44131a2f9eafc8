"""How processes of runs are started. Kept free of torch, so that the fork server warms up early."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from functools import cache
from typing import Any


@cache
def start_method() -> Any:
    """The multiprocessing context: a fork server that has torch imported on Linux, else spawn.

    Plain fork would copy this process with its threads, and CUDA cannot live through that. The
    first call starts the server, which imports torch while this process goes on.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.worker"])
    # A Ctrl-C in the terminal must not reach the server: a signal ignored here stays ignored there.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, previous)
    return context

"""How processes of runs are started. Kept free of torch, so that the fork server warms up early."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from functools import cache
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals by which a user ends a sweep; the sweep's process alone answers them."""


PRELOADED = {
    "coco": "vit_ptq_bench.tasks.detection.preload",
    "scenes": "vit_ptq_bench.tasks.detection.preload",
}
"""Tasks whose runs import more than `worker` does, and the module that imports it."""


@cache
def start_method(*tasks: str) -> Any:
    """The multiprocessing context: a fork server that has torch imported on Linux, else spawn.

    Plain fork would copy this process with its threads, and CUDA cannot live through that. The
    first call starts the server, which imports torch (and what the ``tasks`` need) while we go on.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    preloaded = dict.fromkeys(PRELOADED[task] for task in tasks if task in PRELOADED)
    context.set_forkserver_preload(["vit_ptq_bench.bench.execution.worker", *preloaded])
    # A Ctrl-C in the terminal and a SIGTERM to the process group (timeout(1), batch systems) must
    # not end the server under our runs: a signal ignored here stays ignored there.
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOPS}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return context

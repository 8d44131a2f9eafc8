"""The first import of the fork server: its end comes with that of the sweep alone, also while it imports.

The server of the standard library looks after its parent only once all modules are imported, and a stopped
one never does.
"""

from __future__ import annotations

import ctypes
import os
import signal

PARENT = "BENCH_SWEEP_PROCESS"
"""Environment variable by which the server learns whose it is; nobody else has it."""

STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals by which a user ends a sweep; the sweep's process alone answers them."""

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the one that started it ends (Linux).

    Where the kernel does not offer it, the server ends by itself once it has imported everything.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it has ended meanwhile
        os.kill(os.getpid(), signal.SIGKILL)


def ignore_stops() -> None:
    """Ignore `STOPS`, which were blocked when this process began, as will all that it forks."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


if (_parent := os.environ.pop(PARENT, None)) is not None:
    end_with(int(_parent))
    ignore_stops()

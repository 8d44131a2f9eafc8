"""Ctrl-C at a safe point: a sweep is never stopped half way through a start or a record."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vit_ptq_bench.bench.execution.forkserver import STOPS


class Interrupt:
    """Remembers that somebody wants to stop; the second request stops at once."""

    requested = False

    def check(self) -> None:
        """The safe point.

        Raises:
            KeyboardInterrupt: a stop was requested.
        """
        if self.requested:
            raise KeyboardInterrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.check()
        self.requested = True


@contextmanager
def hold_interrupts() -> Iterator[Interrupt]:
    """Turn SIGINT and SIGTERM into requests while the block runs (in the main thread only)."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = {number: signal.signal(number, interrupt.handle) for number in STOPS}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Ctrl-C, SIGTERM and SIGHUP at a safe point: a sweep is never stopped within a start or a record."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from vit_ptq_bench.bench.execution.server import STOPS

SIGHUP = getattr(signal, "SIGHUP", None)
"""The terminal is gone; not on Windows."""

IMPORT_SECONDS = 0.1
"""After which a signal that came during an import is given again."""


class Interrupt:
    """Remembers that somebody wants to stop; the second request stops at once.

    Of a terminal that is gone several processes tell, so that is no second request. What would be printed
    there goes nowhere, and the sweep ends as by Ctrl-C.
    """

    requested = False

    def __init__(self) -> None:
        self._terminals = [number for number in (1, 2) if os.isatty(number)]

    def check(self) -> None:
        """The safe point.

        Raises:
            KeyboardInterrupt: a stop was requested.
        """
        if self.requested:
            raise KeyboardInterrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if number == SIGHUP:
            self._print_nowhere()
        elif not _importing(frame):
            self.check()
        self.requested = True

    def _print_nowhere(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for terminal in self._terminals:
            os.dup2(nowhere, terminal)
        os.close(nowhere)


@contextmanager
def hold_interrupts() -> Iterator[Interrupt]:
    """Turn `STOPS` into requests while the block runs (in the main thread only)."""
    interrupt = Interrupt()
    with _handled_by(interrupt.handle):
        yield interrupt


def raise_interrupts() -> AbstractContextManager[None]:
    """Let each of `STOPS` raise KeyboardInterrupt while the block runs, as Ctrl-C does."""
    return _handled_by(_raise)


def _raise(number: int, frame: FrameType | None) -> None:
    """Signal handler: as Ctrl-C, but for a moment later where a module is being imported.

    A module in C++ ends the whole program when something is raised while it is made.
    """
    if not _importing(frame):
        raise KeyboardInterrupt
    again = threading.Timer(IMPORT_SECONDS, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup(1) has SIGHUP ignored: the terminal may go.
    caught = [n for n in STOPS if n != SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in caught}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)

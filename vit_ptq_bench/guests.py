"""Code from elsewhere (plug-ins, packages, files in the making) and what it may do to this process: fail."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

ENDINGS = ("_exit", "execv", "execve")
"""Functions of `os` that end a process without a word; other ways of ending leave a status that is not 0."""


class GuestError(Exception):
    """Code from elsewhere did what it must not; the text says what."""


@contextmanager
def watched() -> Iterator[None]:
    """Run code from elsewhere in here: it may raise, but not end the process or close its output.

    Raises:
        GuestError: it tried to; the output is as it was. Exceptions go through, except those that
            would pass every handler (`SystemExit`): they become a `GuestError`.
    """
    with ExitStack() as stack:
        streams = [stack.enter_context(_Kept(name, number)) for name, number in _STREAMS]
        stack.enter_context(_no_endings())
        try:
            yield
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            problem = GuestError(f"it asked to end the program ({text})")
            raise problem.with_traceback(error.__traceback__) from error
        lost = [kept.name for kept in streams if kept.restore()]
        if lost:
            raise GuestError(f"it closed the program's {' and '.join(lost)}")


@contextmanager
def _no_endings() -> Iterator[None]:
    """Make the functions of `ENDINGS` raise in this process, not in its children."""
    before = {name: getattr(os, name) for name in ENDINGS}
    process = os.getpid()

    def refusing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def ending(*arguments: Any) -> Any:
            if os.getpid() != process:
                return real(*arguments)
            raise SystemExit(f"os.{name}({', '.join(map(repr, arguments))})")

        return ending

    for name, real in before.items():
        setattr(os, name, refusing(name, real))
    try:
        yield
    finally:
        for name, real in before.items():
            setattr(os, name, real)


_STREAMS = (("stdout", 1), ("stderr", 2))


class _Kept:
    """An output stream of the process with a copy of its file descriptor, to put both back."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self._number = name, number

    def __enter__(self) -> _Kept:
        self._stream = getattr(sys, self.name)
        try:
            self._copy = os.dup(self._number)
        except OSError:  # there was none before
            self._copy = -1
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()
        if self._copy >= 0:
            os.close(self._copy)

    def restore(self) -> bool:
        """Put back what was closed; return whether anything was. An open stream in its place stays."""
        closed = False
        if self._copy >= 0:
            try:
                os.fstat(self._number)
            except OSError:
                os.dup2(self._copy, self._number)
                closed = True
        present = getattr(sys, self.name)
        if self._stream is not None and (present is None or present.closed):
            stream = self._stream
            setattr(sys, self.name, self._opened() if stream.closed else stream)
            closed = True
        return closed

    def _opened(self) -> io.TextIOBase:
        return open(self._number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def one_line(error: BaseException) -> str:
    """Return kind and text of an error in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an exception class of theirs can fail, too
        text = ""
    if isinstance(error, GuestError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

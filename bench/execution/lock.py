"""One search at a time in one output folder; sweeps share theirs, see `bench.sharing`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vit_ptq_bench.bench.errors import BenchError

LOCK = ".sweep.lock"

HOLDER = ".sweep.pid"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` against other searches.

    The lock belongs to the operating system and goes with the process, however it ends, so a killed
    sweep leaves no stale lock behind; the text beside it only tells who holds it.

    Raises:
        BenchError: another sweep holds the folder, or it cannot be written.
    """
    guard = FileLock(folder / LOCK, timeout=0)
    try:
        guard.acquire()
    except Timeout:
        raise BenchError(
            f"another search{_holder(folder)} is writing {folder}; wait for it, or choose "
            "another folder with --output"
        ) from None
    except OSError as error:
        raise _cannot_lock(folder, error) from error
    holder = folder / HOLDER
    try:
        holder.write_text(f"{os.getpid()} {socket.gethostname()}\n")
    except OSError as error:
        guard.release()
        raise _cannot_lock(folder, error) from error
    try:
        yield
    finally:
        # A folder that takes no change any more has ended the sweep with its own sentence; the next
        # sweep writes over the text.
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        guard.release()


def _cannot_lock(folder: Path, error: OSError) -> BenchError:
    return BenchError(f"cannot lock {folder}: {error.strerror or error}")


def _holder(folder: Path) -> str:
    try:
        pid, host = (folder / HOLDER).read_text().split()
    except (OSError, ValueError):
        return ""
    return f" (process {pid} on {host})"

"""The output folder: can it be written, and how are logs named."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError

PROBE_BYTES = 1 << 16


def prepare(folder: Path) -> None:
    """Create ``folder`` and make sure that a file can be written there.

    Raises:
        BenchError: no permission, no space, or a file stands in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise BenchError(
            f"cannot write to the output folder {folder}: {error.strerror or error}"
        ) from error


STALE_SECONDS = 3600
"""Age from which a temporary file of a writer that died is removed."""


def write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where a folder can be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(folder: Path) -> None:
    """Remove what a writer killed long ago left; a recent one may still be at work."""
    for path in folder.glob(".*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue  # its writer has just finished


def cannot_write(folder: Path, reason: str) -> BenchError:
    """The error for a record that cannot be written; no later one could be either."""
    return BenchError(
        f"cannot write to {folder}: {reason}; the finished runs are kept: "
        "mend that, then give the same command again"
    )

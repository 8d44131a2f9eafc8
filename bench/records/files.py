"""The output folder: can it be written, and how are logs named."""

from __future__ import annotations

import os
import platform
import re
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.processes import is_alive, system

PROBE_BYTES = 1 << 16


def prepare(folder: Path) -> None:
    """Create ``folder`` and make sure that a file can be written there.

    Raises:
        BenchError: no permission, no space, or a file stands in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(folder / "probe", bytes(PROBE_BYTES)):
            pass
    except OSError as error:
        raise BenchError(
            f"cannot write to the output folder {folder}: {error.strerror or error}"
        ) from error


STALE_SECONDS = 3600
"""Age from which a temporary file of another machine's writer is taken to be left over."""


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, in place of what is there; it appears whole or not at all."""
    with written_aside(path, content) as temporary:
        temporary.replace(path)
    sync_folder(path.parent)


def write_new(path: Path, content: bytes) -> bool:
    """Put ``content`` at ``path`` unless something is there, whole or not at all; whether it was put.

    Of any number of processes, on any machines, exactly one succeeds.
    """
    with written_aside(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: the best there is
            if path.exists():
                return False
            temporary.replace(path)
    sync_folder(path.parent)
    return True


@contextmanager
def written_aside(path: Path, content: bytes) -> Iterator[Path]:
    """A synced temporary file with ``content`` beside ``path``, removed unless it was renamed."""
    temporary = temporary_path(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return a file beside ``path`` for what is to become it, which `remove_stale` knows to be one.

    Its name tells who writes it, and no two processes, on one machine or several, choose the same.
    """
    return path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{uuid.uuid4().hex}.tmp")


_NODE = re.sub(r"[^A-Za-z0-9-]", "-", platform.node()) or "host"
_HOST = f"{_NODE}-{zlib.crc32(system().encode()):08x}"  # containers of one name have processes of their own
_TEMPORARY = re.compile(r"\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>[0-9]+)\.[0-9a-f]{32}\.tmp$")


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where a folder can be opened for that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(folder: Path) -> None:
    """Remove what writers that died left.

    Of this machine, at once; of another one that writes to the same folder, when it is an hour old.
    """
    for path in folder.glob(".*.tmp"):
        try:
            if _is_left_over(path):
                path.unlink()
        except FileNotFoundError:
            continue  # its writer has just finished


def _is_left_over(path: Path) -> bool:
    writer = _TEMPORARY.search(path.name)
    if os.name == "posix" and writer is not None and writer["host"] == _HOST:
        return not is_alive(int(writer["pid"]))
    return time.time() - path.stat().st_mtime > STALE_SECONDS


def cannot_write(folder: Path, reason: str) -> BenchError:
    """The error for a record that cannot be written; no later one could be either."""
    return BenchError(
        f"cannot write to {folder}: {reason}; the finished runs are kept: "
        "mend that, then give the same command again"
    )

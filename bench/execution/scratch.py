"""The folder for temporary files of a sweep and its runs, in the system's temporary folder.

Processes talk through sockets there, whose paths have to be short: under a longer ``TMPDIR``, as batch
systems give, it lies in one of `SHORT` instead. It goes with the process, however that ends: by itself,
or killed, when the next sweep of this user starts. A file lock tells whether its owner still lives, as it
belongs to the operating system.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from functools import cache
from itertools import chain
from multiprocessing.util import Finalize
from pathlib import Path

from filelock import FileLock, Timeout

from vit_ptq_bench.bench.errors import BenchError

PREFIX = "benchrun-"

ALIVE = ".alive"
"""Held by the owner of a folder."""

NEW_SECONDS = 60.0
"""For how long a folder may be without its lock file: it is being made."""

SHORT = ("/tmp", "/var/tmp", "/dev/shm")
"""Folders for temporary files whose names are short on every Linux; others have none of them."""

LONGEST_ADDRESS = 100
"""Characters that the path of a socket may have: 107 on Linux, 103 elsewhere."""

AFTER_ALL_ELSE = -1000
"""Priority among what multiprocessing does at the end: its own folder lies in ours."""


@cache
def own_folder() -> Path:
    """The folder of this process; it is made at the first call.

    Raises:
        BenchError: no folder for temporary files has a path short enough.
    """
    base = _base()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        guard = FileLock(folder / ALIVE)
        try:
            guard.acquire()
        except FileNotFoundError:
            continue
        if (folder / ALIVE).exists():  # else another process took it for a leftover just before
            Finalize(None, _remove, args=(folder, guard), exitpriority=AFTER_ALL_ELSE)
            return folder


def _base() -> str:
    """Where the folder of this process lies."""
    for base in _bases():
        if has_room_for_sockets(base) and os.access(base, os.W_OK | os.X_OK):
            return base
    raise BenchError(
        f"the path of the folder for temporary files is too long: {tempfile.gettempdir()}; set TMPDIR to a "
        f"folder whose path has at most {LONGEST_ADDRESS - len(_INSIDE)} characters"
    )


def _bases() -> list[str]:
    return list(dict.fromkeys([tempfile.gettempdir(), *filter(os.path.isdir, SHORT)]))


_INSIDE = f"/{PREFIX}12345678/1234/pymp-12345678/listener-12345678"
"""What names of sockets are in a folder for temporary files, each of these characters for one."""


def has_room_for_sockets(base: str) -> bool:
    """Whether the sockets that multiprocessing makes in our folder may lie below ``base``."""
    return len(os.fsencode(base)) + len(_INSIDE) <= LONGEST_ADDRESS


def remove_leftovers() -> None:
    """Remove the folders of processes that were killed."""
    for folder in chain.from_iterable(Path(base).glob(f"{PREFIX}*") for base in _bases()):
        if not _is_whole(folder):
            continue
        guard = FileLock(folder / ALIVE, timeout=0)
        try:
            guard.acquire()
        except (Timeout, OSError):
            continue  # its owner lives, or it is gone
        _remove(folder, guard)


def _is_whole(folder: Path) -> bool:
    """Whether ``folder`` is one of this user, and not just being made."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    made = (folder / ALIVE).exists() or time.time() - status.st_mtime > NEW_SECONDS
    return own and made


def _remove(folder: Path, guard: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # what another process has just removed is fine
    guard.release()
    shutil.rmtree(folder, ignore_errors=True)  # where a file that is open cannot be removed

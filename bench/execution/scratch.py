"""The folder for temporary files of a sweep and its runs, in the system's temporary folder.

It goes with the process, however that ends: by itself, or killed, when the next sweep of this user starts. A
file lock tells whether its owner still lives, as it belongs to the operating system.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "benchrun-"

ALIVE = ".alive"
"""Held by the owner of a folder."""

NEW_SECONDS = 60.0
"""For how long a folder may be without its lock file: it is being made."""

LONGEST_ADDRESS = 100
"""Characters that the path of a socket may have: 107 on Linux, 103 elsewhere."""

AFTER_ALL_ELSE = -1000
"""Priority among what multiprocessing does at the end: its own folder lies in ours."""


@cache
def own_folder() -> Path:
    """The folder of this process; it is made at the first call."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        guard = FileLock(folder / ALIVE)
        try:
            guard.acquire()
        except FileNotFoundError:
            continue
        if (folder / ALIVE).exists():  # else another process took it for a leftover just before
            Finalize(None, _remove, args=(folder, guard), exitpriority=AFTER_ALL_ELSE)
            return folder


def has_room_for_sockets(folder: Path) -> bool:
    """Whether the sockets that multiprocessing makes among temporary files may lie in ``folder``."""
    return len(f"{folder}/pymp-12345678/listener-12345678") <= LONGEST_ADDRESS


def remove_leftovers() -> None:
    """Remove the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
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

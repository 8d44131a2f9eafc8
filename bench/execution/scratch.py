"""The folder for temporary files of a sweep and its runs, in the system's temporary folder.

Processes talk through sockets there, whose paths have to be short: under a longer ``TMPDIR``, as batch
systems give, it lies in one of `SHORT` instead. It goes with the process, however that ends: by itself,
or killed, when the next sweep of this user starts. The folder names its owner; if that one can't be
seen from here (in a container) it goes when nothing has been written there for a day.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import time
from functools import cache
from itertools import chain
from multiprocessing.util import Finalize
from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.sharing.place import Place, here

PREFIX = "benchrun-"

OWNER = ".owner"
"""The file that names the owner of a folder."""

OLD_SECONDS = 24 * 3600.0
"""Age from which a folder is left over, if nothing is known of its owner."""

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
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_base()))
    (folder / OWNER).write_text(json.dumps(here().write()))
    Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=AFTER_ALL_ELSE)
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
        if _is_left_over(folder):
            shutil.rmtree(folder, ignore_errors=True)  # another process may do the same


def _is_left_over(folder: Path) -> bool:
    """Whether ``folder`` is one of this user, and its owner is gone."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        return False
    owner = _owner(folder)
    if owner is not None and owner.system == here().system:
        return owner.has_ended()
    return time.time() - status.st_mtime > OLD_SECONDS


def _owner(folder: Path) -> Place | None:
    """The owner of a folder; None if it says none: it is just being made, or was not made by this version."""
    try:
        return Place.read(json.loads((folder / OWNER).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""Results kept for later processes, in folders of the user's own within the system's temporary folder.

Names are made of all that decides the content, and nothing is taken that another user may have put there.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import importlib.util
import os
import platform
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

from vit_ptq_bench.tasks.errors import TaskError

lasting_folder: Path | None = None
"""The system's temporary folder, where `tempfile` names another, which goes with the process; else None."""


def recipe_key(modules: Iterable[str], packages: Iterable[str]) -> str:
    """Return 16 hexadecimal digits over all that decides what code computes from nothing.

    That is the source of the ``modules`` (dotted names; none of them is imported), the versions of the
    ``packages`` (as their distributions are called) and of Python, and the machine: its last bits of a sine
    may be others.
    """
    machine = f"{platform.python_version()}\0{platform.machine()}\0{platform.node()}"
    digest = hashlib.sha256(machine.encode())
    for name in packages:
        digest.update(f"\0{name} {version(name)}".encode())
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{name} has no source file", name=name)
        digest.update(b"\0" + Path(spec.origin).read_bytes())
    return digest.hexdigest()[:16]


def private_folder(name: str) -> Path:
    """Return a folder in the system's temporary folder that belongs to this user; it is made if need be.

    Raises:
        TaskError: there is one of that name that belongs to somebody else.
    """
    folder = (lasting_folder or Path(tempfile.gettempdir())) / f"bench-{_user()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if not _is_own(folder.lstat()):
        raise TaskError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    return folder


def kept_text(name: str, key: str, compute: Callable[[], str]) -> str:
    """Return what ``compute`` returns: computed, or as an earlier process has left it.

    A damaged file and one of another user count as absent. Where nothing can be kept, it is computed.

    Args:
        name: what it is, as part of a file name.
        key: of all that decides it, see `recipe_key`.
        compute: returns text of ASCII in one line and without spaces.
    """
    try:
        path = private_folder("kept") / f"{name}-{key}"
    except (OSError, TaskError):
        return compute()
    text = _read(path)
    if text is None:
        text = compute()
        _write(path, text)
    return text


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="ascii") as file:
            own = _is_own(os.fstat(file.fileno()))
            text, _, check = file.read().rstrip("\n").partition(" ")
    except (OSError, UnicodeDecodeError):
        return None
    return text if own and check == _check(path, text) else None


def _write(path: Path, text: str) -> None:
    """Appear whole or not at all; a full disk costs the next process time, and this one nothing."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        fresh.write_text(f"{text} {_check(path, text)}\n", encoding="ascii")
        fresh.replace(path)


def _check(path: Path, text: str) -> str:
    return hashlib.sha256(f"{path.name} {text}".encode()).hexdigest()


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or status.st_uid == os.getuid()

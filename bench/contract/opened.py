"""Which files are opened while something runs, beside what the interpreter and its libraries need."""

from __future__ import annotations

import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PROJECT = Path(__file__).resolve().parents[2]

_notes: list[list[str]] = []
"""Lists that are being filled: an audit hook cannot be taken away, so there is one for all."""

_hooked: list[bool] = []


def opened_while(work: Callable[[], Any]) -> list[str]:
    """Run ``work`` and return the files that it opened, each once, in order.

    Left out: code and libraries, temporary files (activations go to disk where memory is short), devices
    and what the system says of itself.
    """
    if not _hooked:
        sys.addaudithook(_note)
        _hooked.append(True)
    found: list[str] = []
    with tempfile.TemporaryDirectory() as own, _temporary_files_in(own):
        _notes.append(found)
        try:
            work()
        finally:
            _notes.remove(found)
        return [path for path in dict.fromkeys(found) if not _is_usual(path, own)]


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """The rest of the system's folder for them is like any other: projects and data lie there too."""
    before = tempfile.tempdir
    tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = before


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _notes and isinstance(arguments[0], str | bytes | os.PathLike):
        for found in _notes:
            found.append(os.fsdecode(arguments[0]))


def _is_usual(path: str, temporary: str) -> bool:
    whole = Path(os.path.realpath(path))
    usual = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, temporary}
    usual |= {"/proc", "/sys", "/dev", "/etc"}
    if any(whole.is_relative_to(os.path.realpath(folder)) for folder in usual):
        return True
    code = {".py", ".pyc", ".pyi", ".so", ".toml"}
    return whole.suffix in code or (whole.is_dir() and whole.is_relative_to(_PROJECT))

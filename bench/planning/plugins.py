"""Methods and tasks that live outside this project.

Two ways in: a package that declares the entry-point group ``vit_ptq_bench.methods`` or
``vit_ptq_bench.tasks``, and a loose file named with ``--plugin``. Loading the object is what
registers it. The worker processes load the same plugins again, from the same list of paths.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning import old_names
from vit_ptq_bench.bench.planning.options import expanded
from vit_ptq_bench.guests import one_line, watched
from vit_ptq_bench.methods import METHODS
from vit_ptq_bench.tasks import TASKS

GROUPS = {"method": "vit_ptq_bench.methods", "task": "vit_ptq_bench.tasks"}


@dataclass(frozen=True)
class Failure:
    """Something that could not be loaded."""

    origin: str
    error: str


_failures: dict[str, dict[str, Failure]] = {"method": {}, "task": {}}
_loaded_points: set[tuple[str, str, str]] = set()
_loaded_files: dict[Path, str] = {}


def broken(kind: str) -> dict[str, Failure]:
    """Entry points of ``kind`` ("method" or "task") that failed to load, by name."""
    return dict(_failures[kind])


def load(files: Iterable[str | Path] = ()) -> None:
    """Register every entry point and every plugin file; what is loaded already stays as it is.

    A broken entry point is kept in `broken` and hurts only whoever asks for it; a broken file was
    asked for by name and raises at once.

    Raises:
        BenchError: a plugin file is missing, is not Python, or raises while it is imported.
    """
    old_names.install()
    # The built-in names must be there before a plugin can clash with them.
    METHODS.import_from_location()
    TASKS.import_from_location()
    for kind, group in GROUPS.items():
        for point in entry_points(group=group):
            _load_point(kind, point)
    for file in files:
        load_file(Path(file))


def _load_point(kind: str, point: EntryPoint) -> None:
    key = (point.group, point.name, point.value)
    if key in _loaded_points:
        return
    _loaded_points.add(key)
    try:
        with watched():
            point.load()
    except Exception as error:  # a package of somebody else can fail in any way
        package = point.dist.name if point.dist else "an unknown package"
        origin = f"entry point {point.value!r} of {package}"
        _failures[kind][point.name] = Failure(origin, one_line(error))


def load_file(path: Path) -> None:
    """Import the Python file at ``path`` under a module name of its own.

    Raises:
        BenchError: naming the file, and the line where its import failed.
    """
    file = Path(os.path.realpath(expanded(path)))
    if file in _loaded_files:
        return
    if not os.path.lexists(file):
        raise BenchError(f"plugin {path}: there is no such file")
    if file.suffix != ".py":
        raise BenchError(f"plugin {path}: expected a Python file (.py)")
    if not file.is_file():  # a folder, or a pipe that may never end
        raise BenchError(f"plugin {path}: it is not a file")
    try:
        digest = file_sha256(file)
    except OSError as error:
        raise BenchError(f"plugin {path}: cannot read it: {error.strerror}") from error
    name = f"bench_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BenchError(f"plugin {path}: Python cannot import this file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up by name
    try:
        with watched():
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise BenchError(f"plugin {_where(file, error)}: {one_line(error)}") from error
    _loaded_files[file] = digest


def identities() -> list[dict[str, str]]:
    """Name and SHA-256 of every plugin file loaded so far, for a record's environment."""
    return [{"file": path.name, "sha256": digest} for path, digest in _loaded_files.items()]


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _where(file: Path, error: BaseException) -> str:
    """``file:line`` of the last frame of ``error`` that lies in ``file``, or just the file."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}:{error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(file)
    ]
    return f"{file}:{lines[-1]}" if lines else str(file)

"""Where a setting comes from: command line, then suite, then config file, then environment.

A config file looks like this; relative paths in it are relative to it:

    [run]
    device = "cuda:0"
    workers = 1

    [tasks.imagenet]
    data_dir = "/data/imagenet"

The same option from the environment is ``BENCH_IMAGENET_DATA_DIR``.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.names import hint
from vit_ptq_bench.bench.planning.toml_file import TomlFile, describe

DEFAULT_FILE = Path("bench.toml")


RUN_KEYS = {"device": str, "workers": int, "timeout": float, "output": str, "share_gb": float}


@dataclass(frozen=True)
class Config:
    """The config file, or its absence.

    Attributes:
        file: the parsed file; None without one.
    """

    file: TomlFile | None = None

    @classmethod
    def read(cls, path: Path | None) -> Config:
        """Read ``path``; None: ``bench.toml`` of the current folder, if it is there.

        Raises:
            BenchError: the file is missing or wrong; file, line and key are named.
        """
        if path is None and not DEFAULT_FILE.is_file():
            return cls()
        file = TomlFile.read(path or DEFAULT_FILE)
        file.check_keys(("run", "tasks"))
        file.check_keys(tuple(RUN_KEYS), "run")
        return cls(file)

    def setting(self, name: str, default: Any) -> Any:
        """Setting ``name`` of the table ``[run]``.

        Raises:
            BenchError: it has the wrong type.
        """
        if self.file is None:
            return default
        kind = RUN_KEYS[name]
        found = self.file.table("run").get(name)
        if kind is float and isinstance(found, int):
            kind = int
        return self.file.value(kind, default, "run", name)

    def task_options(
        self, task: str, cls: type, given: Mapping[str, Any], suite: Mapping[str, Any] | None = None
    ) -> Any:
        """The options object of a task.

        Args:
            task: name of the task.
            cls: dataclass of its options.
            given: what the command line says; None values are absent ones.
            suite: what the suite fixes.

        Raises:
            BenchError: an unknown option, or a value of the wrong type; its source is named.
        """
        hints = typing.get_type_hints(cls)
        known = [field.name for field in dataclasses.fields(cls)]
        options: dict[str, Any] = {}
        for name in known:
            variable = f"BENCH_{task}_{name}".upper().replace("-", "_")
            if variable in os.environ:
                options[name] = convert(os.environ[variable], hints[name], variable)
        options |= self._from_file(task, known, hints)
        for name, value in (suite or {}).items():
            if name not in known:
                raise BenchError(
                    f"task_options: unknown option {name!r} of task {task}{hint(name, known)}"
                )
            options[name] = convert(value, hints[name], f"task_options.{name}")
        options |= {
            name: convert(value, hints[name], f"--{name.replace('_', '-')}")
            for name, value in given.items()
            if value is not None
        }
        return cls(**options)

    def _from_file(self, task: str, known: list[str], hints: Mapping[str, Any]) -> dict[str, Any]:
        if self.file is None:
            return {}
        self.file.check_keys(known, "tasks", task)
        options = {}
        for name, value in self.file.table("tasks", task).items():
            source = f"{self.file.path}:{self.file.line('tasks', task, name)}: tasks.{task}.{name}"
            options[name] = convert(value, hints[name], source)
            if isinstance(options[name], Path):
                options[name] = self.file.path.parent / options[name].expanduser()
        return options


def convert(value: Any, wanted: Any, source: str) -> Any:
    """``value`` as the type ``wanted`` (str, int, float, bool, Path, or one of them or None).

    Text becomes a number or a path where one is wanted.

    Raises:
        BenchError: it cannot; ``source`` says where the value stands.
    """
    kinds = [kind for kind in _members(wanted) if kind is not type(None)]
    for kind in kinds:
        if kind is bool and str(value).lower() in ("true", "false", "1", "0"):
            return str(value).lower() in ("true", "1")
        if (
            kind in (int, float)
            and isinstance(value, (str, int, float))
            and not isinstance(value, bool)
        ):
            try:
                return kind(value)
            except ValueError:
                continue
        if kind in (str, Path) and isinstance(value, (str, Path)):
            return kind(value)
    names = " or ".join(kind.__name__ for kind in kinds)
    raise BenchError(f"{source}: expected {names}, not {describe(value)}")


def _members(wanted: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    is_union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
    return typing.get_args(wanted) if is_union else (wanted,)

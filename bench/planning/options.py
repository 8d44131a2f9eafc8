"""Options as fields of a dataclass, and the places that give their values."""

from __future__ import annotations

import dataclasses
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.names import hint
from vit_ptq_bench.bench.planning.toml_file import TomlFile, describe, is_there
from vit_ptq_bench.values import number, out_of_bounds, shown, whole_number

DEFAULT_FILE = Path("bench.toml")

LONGEST_NAME = 200
"""Characters of a name: of a model, a suite, a device; file systems take 255 bytes."""

LONGEST_PART, LONGEST_PATH = 255, 4095
"""Bytes of one part of a path, and of the whole, that file systems take."""

Options = TypeVar("Options")


def option(default: Any, help_text: str | None, metavar: str | None = None, **more: Any) -> Any:
    """Return a dataclass field that is an option.

    Args:
        default: where nothing says otherwise; no container that can change.
        help_text: for `--help`.
        metavar: stands for the value there.
        more: further metadata; ``at_least``, ``more_than`` and ``at_most`` bound a number, see
            `vit_ptq_bench.values.out_of_bounds`.
    """
    return dataclasses.field(
        default=default, metadata={"help": help_text, "metavar": metavar} | more
    )


def options_of(cls: type) -> Iterator[tuple[str, Any, Mapping[str, Any], Any]]:
    """Yield name, type, metadata and default of every field of a dataclass that is an option."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        if "help" in item.metadata:
            yield item.name, hints[item.name], item.metadata, item.default


@dataclass(frozen=True)
class Source:
    """A place that says some settings.

    Attributes:
        values: by the name of the option; None is not said.
        place: names the place of an option, for errors.
        base: folder that relative paths are relative to; None: the current one.
        whole: whether every name has to be an option: of a command line only some are.
        what: what has these options, for errors.
    """

    values: Mapping[str, Any]
    place: Callable[[str], str]
    base: Path | None = None
    whole: bool = False
    what: str = ""


def words_source(words: Mapping[str, Any]) -> Source:
    """The command line."""
    return Source(words, flag)


def flag(name: str) -> str:
    """Return the option of the command line that gives a setting."""
    return f"--{name.replace('_', '-')}"


def suite_source(task: str, values: Mapping[str, Any], file: TomlFile | None = None) -> Source:
    """The table ``[task_options]`` of a suite, which stands in ``file``."""
    name = "task_options"
    place = _place_in(file, name) if file is not None else lambda key: f"{name}.{key}"
    return Source(values, place, whole=True, what=f"task {task}")


def _place_in(file: TomlFile, *keys: str) -> Callable[[str], str]:
    """What names the place of a key in a table of a file."""

    def place(name: str) -> str:
        return f"{file.path}:{file.line(*keys, name)}: {'.'.join(keys)}.{name}"

    return place


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
        if path is None and not is_there(DEFAULT_FILE):
            return cls()
        file = TomlFile.read(path or DEFAULT_FILE)
        file.check_keys(("run", "tasks"))
        return cls(file)

    def table(self, *keys: str) -> Source:
        """The settings of a table of the file, like ``[tasks.imagenet]``."""
        file = self.file
        if file is None:
            return Source({}, lambda name: name)
        return Source(file.table(*keys), _place_in(file, *keys), file.path.parent, whole=True)

    @staticmethod
    def environment(name: str) -> Source:
        """The settings of a table in the environment: ``BENCH_<TABLE>_<OPTION>``."""
        prefix = environment_name(name, "")
        values = {
            key.removeprefix(prefix).lower(): value
            for key, value in os.environ.items()
            if key.startswith(prefix)
        }
        return Source(values, lambda option: environment_name(name, option))


def environment_name(table: str, name: str) -> str:
    """Return the environment variable of an option of a table."""
    return f"BENCH_{table}_{name}".upper().replace("-", "_")


def resolved(cls: type[Options], sources: Sequence[Source]) -> Options:
    """Return the dataclass ``cls`` with what the sources say; a later one counts more.

    Raises:
        BenchError: an unknown option, a value of the wrong type or out of range; its place is named.
    """
    known = {name: (kind, facts) for name, kind, facts, _ in options_of(cls)}
    found: dict[str, Any] = {}
    for source in sources:
        for name, value in source.values.items():
            if name not in known:
                _refuse_unknown(source, name, list(known))
            elif value is not None:
                kind, facts = known[name]
                found[name] = _checked(source, name, value, kind, facts)
    return cls(**found)


def _refuse_unknown(source: Source, name: str, known: Sequence[str]) -> None:
    if source.whole:
        of = f" of {source.what}" if source.what else ""
        raise BenchError(f"{source.place(name)}: unknown option {name!r}{of}{hint(name, known)}")


def _checked(source: Source, name: str, value: Any, kind: Any, facts: Mapping[str, Any]) -> Any:
    result = convert(value, kind, source.place(name))
    for one in result if isinstance(result, tuple) else (result,):
        problem = out_of_bounds(one, facts) or unusable(one)
        if problem is not None:
            raise BenchError(f"{source.place(name)}: {problem}")
    if isinstance(result, tuple):
        return tuple(_based(source.base, value) for value in result)
    return _based(source.base, result)


def unusable(value: Any) -> str | None:
    """Return what is wrong with a text or a path, whatever it is for; None when nothing is."""
    if isinstance(value, str) and len(value) > LONGEST_NAME:
        return f"{shown(value)} has {len(value)} characters, more than {LONGEST_NAME}"
    if isinstance(value, Path):
        if "\0" in str(value):
            return f"{shown(str(value))} is no path: it has a NUL character"
        try:
            parts = [len(os.fsencode(part)) for part in value.parts]
        except UnicodeEncodeError:
            return (
                f"{shown(str(value))} has letters that this system's locale "
                f"({sys.getfilesystemencoding()}) does not have; set PYTHONUTF8=1"
            )
        if max(parts, default=0) > LONGEST_PART or sum(parts) + len(parts) > LONGEST_PATH:
            return f"{shown(str(value))} is no path: it is longer than file systems allow"
    return None


def _based(base: Path | None, value: Any) -> Any:
    """A path relative to ``base``; anything else as it is."""
    return base / expanded(value) if base is not None and isinstance(value, Path) else value


def expanded(path: str | Path) -> Path:
    """``~`` and ``~user`` replaced; a user that does not exist is left as it stands."""
    return Path(os.path.expanduser(path))


def convert(value: Any, wanted: Any, place: str) -> Any:
    """Return ``value`` as the type ``wanted``: str, int, float, bool, Path, a Literal, a tuple, or None too.

    Text becomes a number or a path where one is wanted, and a tuple at its commas.

    Raises:
        BenchError: it cannot; ``place`` says where the value stands.
    """
    if typing.get_origin(wanted) is Literal:
        return _one_of(value, typing.get_args(wanted), place)
    if typing.get_origin(wanted) is tuple:
        kind = typing.get_args(wanted)[0]
        # A path may have a comma.
        parts = comma_list(value) if isinstance(value, str) and kind is not Path else value
        parts = parts if isinstance(parts, list | tuple) else [parts]
        if not parts:
            raise BenchError(f"{place}: the list is empty")
        return tuple(dict.fromkeys(convert(part, kind, place) for part in parts))
    kinds = [kind for kind in _members(wanted) if kind is not type(None)]
    for kind in kinds:
        found = _as(kind, value)
        if found is not None:
            return found
    names = " or ".join(kind.__name__ for kind in kinds)
    raise BenchError(f"{place}: expected {names}, not {describe(value)}")


def comma_list(text: str) -> list[str]:
    """``a,b`` as a list of names."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _one_of(value: Any, known: Sequence[Any], place: str) -> Any:
    if value not in known:
        raise BenchError(f"{place}: expected {' or '.join(known)}, not {describe(value)}")
    return value


def _as(kind: type, value: Any) -> Any:
    """``value`` as a ``kind``, or None."""
    if kind is bool:
        text = str(value).lower()
        return text in ("true", "1") if text in ("true", "false", "1", "0") else None
    if kind in (int, float) and isinstance(value, str | int | float):
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            return None
        if isinstance(value, str):
            return whole_number(value) if kind is int else number(value)
        try:
            return kind(value)
        except OverflowError:  # a whole number that no float holds
            return None
    if kind in (str, Path) and isinstance(value, str | Path):
        return kind(value)
    return None


def _members(wanted: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    is_union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
    return typing.get_args(wanted) if is_union else (wanted,)

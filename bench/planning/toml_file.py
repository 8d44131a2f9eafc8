"""TOML files read with errors that name file, line and key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.names import hint

TYPE_NAMES = {
    str: "a string",
    int: "a whole number",
    list: "a list",
    dict: "a table",
    bool: "true or false",
    float: "a number",
}

_KEY = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""


@dataclass(frozen=True)
class TomlFile:
    """A parsed TOML file that still knows where its keys stand.

    Attributes:
        path: the file.
        text: its text, to find lines in.
        data: its parsed tables.
    """

    path: Path
    text: str
    data: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> TomlFile:
        """Read and parse ``path``.

        Raises:
            BenchError: the file cannot be read, is not UTF-8, or is not TOML (with the line).
        """
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BenchError(f"{path}: cannot read it: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise BenchError(f"{path}:{line}: not UTF-8 text") from error
        try:
            return cls(path, text, tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise BenchError(_syntax_error(path, text, error)) from error

    def error(self, message: str, *keys: str, value: object = None) -> BenchError:
        """A `BenchError` about the key at the path ``keys`` (or about ``value`` in its list)."""
        line = self.line(*keys, value=value)
        place = f"{self.path}:{line}" if line else str(self.path)
        return BenchError(
            f"{place}: {'.'.join(keys)}: {message}" if keys else f"{place}: {message}"
        )

    def line(self, *keys: str, value: object = None) -> int | None:
        """Line (from 1) of the key ``keys``, or of ``value`` at or after it; None if unknown.

        TOML parsers drop positions, so the text is searched. A key written in a form the search
        does not know (inside an inline table) is answered with the line of what holds it.
        """
        number = self._key_line(keys)
        if number is None or value is None:
            return number
        quoted = re.compile(
            rf"""(["']){re.escape(str(value))}\1|(?<![\w.-]){re.escape(str(value))}(?![\w.-])"""
        )
        for later, text in enumerate(self.text.splitlines()[number - 1 :], start=number):
            if quoted.search(text.partition("=")[2] if later == number else text):
                return later
        return number

    def _key_line(self, keys: tuple[str, ...]) -> int | None:
        header: tuple[str, ...] = ()
        best: int | None = None
        depth = 0
        for number, text in enumerate(self.text.splitlines(), start=1):
            if match := re.match(r"\s*\[+([^\]]+)\]", text):
                header = _key_path(match[1])
                here = header
            elif match := re.match(rf"\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=", text):
                here = header + _key_path(match[1])
            else:
                continue
            if here == keys:
                return number
            shared = min(len(here), len(keys))
            if shared > depth and here[:shared] == keys[:shared]:
                best, depth = number, shared
        return best

    def check_keys(self, known: Collection[str], *table: str) -> None:
        """Refuse keys of ``table`` (a path of keys; empty: the top level) that are not ``known``.

        Raises:
            BenchError: with the near matches of the first unknown key.
        """
        for key in self.table(*table):
            if key not in known:
                raise self.error(f"unknown key{hint(key, known)}", *table, key)

    def table(self, *keys: str) -> dict[str, Any]:
        """The table at ``keys``; empty when the file has none.

        Raises:
            BenchError: there is something else than a table.
        """
        here: dict[str, Any] = self.data
        for depth, key in enumerate(keys, start=1):
            here = here.get(key, {})
            if not isinstance(here, dict):
                raise self.error(f"expected a table, not {describe(here)}", *keys[:depth])
        return here

    def value(self, kind: type, default: Any, *keys: str) -> Any:
        """The value of type ``kind`` at ``keys``, or ``default`` when the key is absent.

        Raises:
            BenchError: the value is of another type.
        """
        table = self.table(*keys[:-1])
        if keys[-1] not in table:
            return default
        found = table[keys[-1]]
        if not is_a(found, kind):
            raise self.error(f"expected {TYPE_NAMES[kind]}, not {describe(found)}", *keys)
        return found

    def items(self, kind: type, default: tuple[Any, ...], *keys: str) -> tuple[Any, ...]:
        """The list of ``kind`` at ``keys`` (one bare item is a list of one), or ``default``.

        Raises:
            BenchError: the list is empty, repeats an item, or holds another type.
        """
        table = self.table(*keys[:-1])
        if keys[-1] not in table:
            return default
        found = table[keys[-1]]
        found = found if isinstance(found, list) else [found]
        for item in found:
            if not is_a(item, kind):
                raise self.error(
                    f"expected {TYPE_NAMES[kind]} or a list of such, not {describe(item)}",
                    *keys,
                    value=item,
                )
        if not found:
            raise self.error("the list is empty", *keys)
        for item in found:
            if found.count(item) > 1:
                raise self.error(f"{item!r} stands there twice", *keys, value=item)
        return tuple(found)


def is_a(value: object, kind: type) -> bool:
    """`isinstance`, except that a truth value is not a number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def describe(value: object) -> str:
    """``value`` with its TOML type, for an error message."""
    return f"{value!r} ({TYPE_NAMES.get(type(value), type(value).__name__)})"


def _key_path(text: str) -> tuple[str, ...]:
    """``a."b c".d`` as its parts."""
    parts = re.findall(_KEY, text)
    return tuple(part.strip("\"'") for part in parts)


def _syntax_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> str:
    """Message for text that is not TOML, with the line and what stands there."""
    match = re.search(r"\(at line (\d+)", str(error))
    if match is None:  # "at end of document"
        return f"{path}:{max(1, len(text.splitlines()))}: not valid TOML: {error}"
    number = int(match[1])
    lines = text.splitlines()
    shown = lines[number - 1].strip() if number <= len(lines) else ""
    reason = str(error).partition(" (at line")[0]
    return f"{path}:{number}: not valid TOML: {reason}: {shown}"

"""TOML files read with errors that name file, line and key."""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.names import hint
from vit_ptq_bench.values import LONGEST, out_of_bounds, shown, shown_path

TYPE_NAMES = {
    str: "a string",
    int: "a whole number",
    list: "a list",
    dict: "a table",
    bool: "true or false",
    float: "a number",
}

MAX_BYTES = 16_000_000
"""Size of a file; a suite that names 40,000 models has two million bytes."""

MAX_DEPTH = 32
"""Tables and lists in each other."""

_KEY = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""

_LONG_KEY = re.compile(
    rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')\s*+\.\s*+){{{2 * MAX_DEPTH}}}"""
)
"""A dotted key for which a parser would take time and memory that grow with its length squared."""

_BOMS = {b"\xef\xbb\xbf": None, b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Marks at the start of text files, by the encoding that is refused; that of UTF-8 is skipped."""


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
        text = _text(path)
        if match := _LONG_KEY.search(text):
            line = text.count("\n", 0, match.start()) + 1
            raise BenchError(f"{path}:{line}: a key of more than {2 * MAX_DEPTH} parts")
        try:
            file = cls(path, text, tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise BenchError(_syntax_error(path, text, error)) from error
        except RecursionError:
            raise BenchError(f"{path}: lists or tables nested more than {MAX_DEPTH} deep") from None
        except ValueError as error:  # more digits than Python reads
            found = re.search(r"[0-9_]{4300}", text)
            line = text.count("\n", 0, found.start() if found else 0) + 1
            raise BenchError(f"{path}:{line}: a number has too many digits") from error
        file._check_size()
        return file

    def _check_size(self) -> None:
        """Refuse what no option, suite or setting can mean: deep nesting, numbers of more than 64 bits."""
        for keys, value in _leaves(self.data, ()):
            if len(keys) > MAX_DEPTH:
                raise self.error(f"nested more than {MAX_DEPTH} deep", *keys[:2])
            problem = out_of_bounds(value, {})
            if problem is not None:
                raise self.error(problem, *keys)

    def error(self, message: str, *keys: str, value: object = None) -> BenchError:
        """A `BenchError` about the key at the path ``keys`` (or about ``value`` in its list)."""
        line = self.line(*keys, value=value)
        place = f"{self.path}:{line}" if line else str(self.path)
        name = ".".join(
            key if len(key) <= LONGEST and key.isprintable() else shown(key) for key in keys
        )
        return BenchError(f"{place}: {name}: {message}" if keys else f"{place}: {message}")

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
        for later, text in enumerate(self.text.split("\n")[number - 1 :], start=number):
            if quoted.search(text.partition("=")[2] if later == number else text):
                return later
        return number

    def _key_line(self, keys: tuple[str, ...]) -> int | None:
        header: tuple[str, ...] = ()
        best: int | None = None
        depth = 0
        for number, text in enumerate(self.text.split("\n"), start=1):
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
        for item, times in Counter(found).items():
            if times > 1:
                raise self.error(f"{shown(item)} stands there twice", *keys, value=item)
        return tuple(found)


def is_a(value: object, kind: type) -> bool:
    """`isinstance`, except that a truth value is not a number."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def describe(value: object) -> str:
    """``value`` with its TOML type, for an error message."""
    return f"{shown(value)} ({TYPE_NAMES.get(type(value), type(value).__name__)})"


def is_there(path: Path) -> bool:
    """Whether anything has this name, also a folder or a link that leads nowhere: reading it says what."""
    return os.path.lexists(path)


def _key_path(text: str) -> tuple[str, ...]:
    """``a."b c".d`` as its parts."""
    parts = re.findall(_KEY, text)
    return tuple(part.strip("\"'") for part in parts)


def _text(path: Path) -> str:
    """The text of a file, line ends as ``\\n``.

    Raises:
        BenchError: it cannot be read, is no file, is too large, or is not UTF-8.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a folder, or a pipe that may never end
        raise BenchError(f"{path}: cannot read it: it is not a file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise BenchError(f"{shown_path(str(path))}: cannot read it: {reason}") from error
    if len(content) > MAX_BYTES:
        raise BenchError(f"{path}: has more than {MAX_BYTES // 10**6} MB: no suite or config file")
    for mark, encoding in _BOMS.items():
        if content.startswith(mark):
            if encoding is not None:
                raise BenchError(f"{path}: is {encoding} text; save it as UTF-8")
            content = content.removeprefix(mark)
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise BenchError(f"{path}:{line}: a NUL byte: not UTF-8 text, but UTF-16 or no text at all")
    try:
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BenchError(f"{path}:{line}: not UTF-8 text") from error


def _leaves(data: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that holds no others, and every one that is too deep, with the keys on the way there.

    An item of a list has the keys of the list and its place in it.
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [(keys, data)]
    while waiting:
        keys, value = waiting.pop()
        if isinstance(value, dict) and len(keys) <= MAX_DEPTH:
            waiting += [((*keys, key), item) for key, item in value.items()]
        elif isinstance(value, list) and len(keys) <= MAX_DEPTH:
            waiting += [((*keys, str(place)), item) for place, item in enumerate(value)]
        else:
            yield keys, value


def _syntax_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> str:
    """Message for text that is not TOML, with the line and what stands there."""
    match = re.search(r"\(at line (\d+)", str(error))
    lines = text.split("\n")
    if match is None:  # "at end of document"
        return f"{path}:{len(lines) - lines[-1:].count('')}: not valid TOML: {error}"
    number = int(match[1])
    line = lines[number - 1].strip() if number <= len(lines) else ""
    line = line if line.isprintable() and len(line) <= LONGEST else shown(line)
    reason = str(error).partition(" (at line")[0]
    return f"{path}:{number}: not valid TOML: {reason}: {line}"

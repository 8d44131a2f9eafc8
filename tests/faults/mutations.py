"""Mutations of bytes, texts and trees: what disks, editors, converters and typing errors do to files."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

NUMBERS = (
    "0", "-0", "1", "-1", "0.0", "-0.5", "1.5", "nan", "inf", "-inf", "NaN", "Infinity", "1e300", "1e-300",
    "1e999", "255", "256", "65536", "2147483647", "2147483648", "-2147483649", "4294967296",
    "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 22, "9" * 400,
    "9" * 5000, "0x10", "1_000", "٣", "½", "+5", "1,5", "true", "null", "None", "",
)  # fmt: skip

TEXTS = (
    "", " ", "a" * 5000, "../..", "/", ".", "*", "[", "[a-", "?", "**", "\\", "\n", "\t", "\r", "\0",
    "\x1b[2J", "é", "ｆｕｌｌ", "٤", "W٤A٤", "W04A4", "w4a4", "W4A4 ", "W99A99", "W4A", "W32A32",
    "😀", "\u202e", "\ufeff", "NaN", "null", "true", "0", "-1", "1e999", "None", "__proto__", "%s", "{}",
    "{0}", "minmax", "fp32", "MinMax", "vit_mini", "fashion", "imagenet", "coco", "scenes", "equal",
    "quick", "cpu", "cuda", "mps",
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.0, -0.0, 0.5, -1.5, 1e-300, 1e300, float("nan"), float("inf"),
    float("-inf"), 2**31, 2**32, 2**53 + 1, 2**63, -(2**63) - 1, 10**22, 10**400, "", "0", "1", "nan", "x",
    "\ud800", "\0", "a" * 5000, [], {}, [None], [[]], [1, 2], {"a": 1}, [1, 2, 3, 4, 5],
)  # fmt: skip
"""What may stand in a JSON file instead of something else."""


def mutate_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """One mutation of ``data``, and what it was."""
    size = len(data)
    at = rng.randrange(size + 1)
    end = min(size, at + rng.choice((1, 1, 2, 4, 16, 200)))
    kind = rng.choice(("flip", "set", "cut", "remove", "repeat", "insert", "zero", "swap"))
    if kind == "flip" and at < size:
        return flipped(data, at * 8 + rng.randrange(8)), f"flip a bit of byte {at}"
    if kind == "set" and at < size:
        value = rng.randrange(256)
        return data[:at] + bytes([value]) + data[at + 1 :], f"byte {at} = {value}"
    if kind == "cut":
        return data[:at], f"cut at {at}"
    if kind == "repeat":
        return data[:end] + data[at:end] * rng.choice((1, 2, 50)) + data[end:], f"repeat {at}:{end}"
    if kind == "insert":
        extra = rng.choice(
            (rng.randbytes(rng.randrange(1, 9)), b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3")
        )
        return data[:at] + extra + data[at:], f"insert {extra!r} at {at}"
    if kind == "zero":
        return data[:at] + bytes(end - at) + data[end:], f"zero {at}:{end}"
    if kind == "swap":
        other = rng.randrange(size + 1)
        low, high = sorted((at, other))
        middle = (low + high) // 2
        return data[:low] + data[middle:high] + data[low:middle] + data[
            high:
        ], f"swap in {low}:{high}"
    return data[:at] + data[end:], f"remove {at}:{end}"


def flipped(data: bytes, bit: int) -> bytes:
    """``data`` with the bit of that number turned over."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def mutate_text(text: str, rng: random.Random) -> tuple[str, str]:
    """One mutation of a text in the units of who writes it: numbers, words, quoted texts, lines."""
    kind = rng.choice((_number, _number, _quoted, _quoted, _word, _lines, _lines, _characters))
    return kind(text, rng)


def _replaced(
    text: str, pattern: str, new: Callable[[str], str], rng: random.Random
) -> tuple[str, str]:
    found = list(re.finditer(pattern, text))
    if not found:
        return _characters(text, rng)
    match = rng.choice(found)
    value = new(match[0])
    what = f"{match[0][:20]!r} at {match.start()} -> {value[:40]!r}"
    return text[: match.start()] + value + text[match.end() :], what


def _number(text: str, rng: random.Random) -> tuple[str, str]:
    return _replaced(text, r"-?\d+(\.\d+)?", lambda _: rng.choice(NUMBERS), rng)


def _quoted(text: str, rng: random.Random) -> tuple[str, str]:
    return _replaced(text, r'"[^"\n]*"', lambda old: _other_quoted(old, rng), rng)


def _other_quoted(old: str, rng: random.Random) -> str:
    if rng.random() < 0.3:
        return rng.choice(
            (old[1:-1], old[:-1], old[1:], old + old, f"[{old}]", f"'{old[1:-1]}'", "[]", "{}")
        )
    return f'"{rng.choice(TEXTS)}"'


def _word(text: str, rng: random.Random) -> tuple[str, str]:
    def new(old: str) -> str:
        changed = (
            old.upper(),
            old[::-1],
            old[:-1],
            old + old[-1],
            "x",
            "",
            rng.choice(TEXTS),
            old + "." + old,
        )
        return rng.choice(changed)

    return _replaced(text, r"[A-Za-z_]{2,}", new, rng)


def _lines(text: str, rng: random.Random) -> tuple[str, str]:
    lines = text.splitlines(keepends=True)
    if not lines:
        return _characters(text, rng)
    at, kind = rng.randrange(len(lines)), rng.choice(("remove", "repeat", "move", "join", "blank"))
    if kind == "remove":
        return "".join(lines[:at] + lines[at + 1 :]), f"remove line {at + 1}"
    if kind == "repeat":
        times = rng.choice((1, 1, 2, 1000))
        return "".join(lines[: at + 1] + [lines[at]] * times + lines[at + 1 :]), (
            f"repeat line {at + 1} {times} times"
        )
    if kind == "join":
        return "".join(
            [*lines[:at], lines[at].rstrip("\r\n"), *lines[at + 1 :]]
        ), f"join line {at + 1}"
    if kind == "blank":
        return "".join(
            [*lines[:at], rng.choice(("\n", "#\n", "# x\n", "   \n", "\t\n")), *lines[at:]]
        ), (f"blank or comment before line {at + 1}")
    line = lines.pop(at)
    to = rng.randrange(len(lines) + 1)
    return "".join([*lines[:to], line, *lines[to:]]), f"move line {at + 1} to {to + 1}"


def _characters(text: str, rng: random.Random) -> tuple[str, str]:
    at = rng.randrange(len(text) + 1)
    extra = rng.choice(
        ("[", "]", "{", "}", '"', "'", "=", "\n", "#", ",", ":", "[" * 3000, "{a=" * 300, "\0", "ä")
    )
    end = min(len(text), at + rng.randrange(3))
    return text[:at] + extra + text[end:], f"{text[at:end]!r} at {at} -> {extra[:20]!r}"


ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7")


def encoded(text: str, rng: random.Random) -> tuple[bytes, str]:
    """The text as bytes, as editors on other systems save it."""
    name = rng.choice(ENCODINGS)
    changed = text.replace("\n", "\r\n") if rng.random() < 0.5 else text
    return changed.encode(name, "replace"), f"as {name}"


def mutate_file(text: str, rng: random.Random) -> tuple[bytes, str]:
    """One to three mutations of a text file: of its text, mostly, or of its bytes or encoding."""
    whats = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        text, what = mutate_text(text, rng)
        whats.append(what)
    data = text.encode("utf-8", "surrogatepass")
    draw = rng.random()
    if draw < 0.1:
        data, what = encoded(text, rng)
        whats.append(what)
    elif draw < 0.3:
        data, what = mutate_bytes(data, rng)
        whats.append(what)
    return data, "; ".join(whats)


def mutate_tree(tree: Any, rng: random.Random, values: Sequence[Any] = VALUES) -> tuple[Any, str]:
    """A copy of JSON data with one place changed, and what was changed."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree, ()))
    if not places:
        return rng.choice(values), "another document"
    path = _evenly(places, rng)
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    key = path[-1]
    where = "/".join(map(str, path))
    kind = rng.choice(("value", "value", "value", "remove", "repeat", "rename", "wrap", "shift"))
    if kind == "remove":
        del parent[key]
        return tree, f"remove {where}"
    if kind == "repeat" and isinstance(parent, list):
        parent.extend(copy.deepcopy([parent[key]]) * rng.choice((1, 1, 3)))
        return tree, f"repeat {where}"
    if kind == "rename" and isinstance(parent, dict):
        new = rng.choice((key.upper(), key + "_", "id", "", "bbox", "name", key[:-1]))
        parent[new] = parent.pop(key)
        return tree, f"rename {where} to {new!r}"
    if kind == "wrap":
        parent[key] = rng.choice(([parent[key]], {"x": parent[key]}, str(parent[key])))
        return tree, f"wrap {where}"
    if kind == "shift" and isinstance(parent[key], int | float):
        parent[key] = parent[key] * rng.choice((-1, 0, 0.5, 2, 1000)) + rng.choice((0, 1, -1))
        return tree, f"{where} = {parent[key]!r}"
    value = copy.deepcopy(rng.choice(values))
    parent[key] = value
    return tree, f"{where} = {value!r}"[:200]


def _places(tree: Any, path: tuple[Any, ...]) -> Any:
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _evenly(places: list[tuple[Any, ...]], rng: random.Random) -> tuple[Any, ...]:
    """A place whose form (its path without indices) is drawn first: rare keys are tried as often."""
    forms: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for path in places:
        forms.setdefault(tuple("*" if isinstance(s, int) else s for s in path), []).append(path)
    return rng.choice(forms[rng.choice(sorted(forms, key=str))])

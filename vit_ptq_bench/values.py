"""Values that people write: numbers from text, their range, and how a message shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

LONGEST = 60
"""Characters of a value in a message."""

LONGEST_PATH = 500
"""Characters of a path in a message."""

MAX_WHOLE = 2**63 - 1
"""Largest whole number anywhere: what TOML, JSON readers and tensors hold."""

_WHOLE = re.compile(r"[+-]?[0-9]{1,1000}")
_NUMBER = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.I
)


def whole_number(text: str) -> int | None:
    """Return the whole number that ``text`` is in ASCII digits, or None."""
    return int(text) if _WHOLE.fullmatch(text.strip()) else None


def number(text: str) -> float | None:
    """Return the number that ``text`` is in ASCII digits, or None; it may be infinite or nan."""
    return float(text) if text.isascii() and _NUMBER.fullmatch(text.strip()) else None


def out_of_bounds(value: Any, facts: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a number, given the metadata of its field; None when nothing is.

    Args:
        value: anything; what is no number is not judged.
        facts: ``at_least``, ``more_than``, ``at_most`` and ``less_than`` bound it. Without bounds it has to
            be finite, and a whole number one of 64 bits.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not isfinite(value):
        return f"must be a finite number, not {value:g}"
    wrong = {
        "at_least": "at_least" in facts and value < facts["at_least"],
        "more_than": "more_than" in facts and value <= facts["more_than"],
        "at_most": "at_most" in facts and value > facts["at_most"],
        "less_than": "less_than" in facts and value >= facts["less_than"],
    }
    for bound, broken in wrong.items():
        if broken:
            return f"must be {bound.replace('_', ' ')} {facts[bound]}, not {_plain(value)}"
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        return f"must be a number of 64 bits, not {_plain(value)}"
    return None


def _plain(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(value)


def object_of(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, as ``object_pairs_hook``: of a key that stands twice, Python takes the last.

    Raises:
        ValueError: a key stands twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return found


def shown(value: object) -> str:
    """Return ``value`` as Python writes it, in at most `LONGEST` characters, all of them printable."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits, or levels, than Python writes
        text = f"<{type(value).__name__} too large to show>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def shown_path(path: str) -> str:
    """Return ``path`` for a message: as it is, unless no file has such a name."""
    return path if len(path) <= LONGEST_PATH and path.isprintable() else shown(path)


def sentence(text: str) -> str:
    """Return a message for a terminal: printable, and no word in it longer than a path is."""
    long = rf"\S{{{LONGEST_PATH},}}"
    return re.sub(long, lambda word: f"{word[0][:LONGEST]}...", printable(text))


def printable(text: str) -> str:
    """Return ``text`` with everything that could steer a terminal, or that is no character, escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )

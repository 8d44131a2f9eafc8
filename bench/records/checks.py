"""Checks of JSON data: each says whether a value has the right form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

LARGEST = 10**12
"""No count, no number of seconds and no number of megabytes is larger."""


def _is(*types: type) -> Check:
    """A check for instances; True and False do not pass as numbers."""
    return lambda value: isinstance(value, types) and not isinstance(value, bool)


def optional(check: Check) -> Check:
    """Also null."""
    return lambda value: value is None or check(value)


def dict_of(check: Check) -> Check:
    """An object whose values all pass."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def list_of(check: Check) -> Check:
    """A list whose items all pass."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def pair_of(check: Check) -> Check:
    """A list of two items that pass."""
    return lambda value: list_of(check)(value) and len(value) == 2


def object_of(known: Mapping[str, Check]) -> Check:
    """An object whose values of these keys, where they are there, pass; others may be anything."""
    return lambda value: (
        isinstance(value, dict)
        and all(check(value[key]) for key, check in known.items() if key in value)
    )


def _within(low: float, high: float, check: Check) -> Check:
    return lambda value: check(value) and low <= value <= high


text = _is(str)
whole = _is(int)
count = _within(0, LARGEST, whole)
amount = _within(0, LARGEST, _is(int, float))
percent = _within(0, 100, _is(int, float))
mapping = _is(dict)
table = dict_of(mapping)


def short(value: Any) -> str:
    """A value in at most 60 characters, for an error message."""
    words = repr(value)
    return words if len(words) <= 60 else words[:57] + "..."

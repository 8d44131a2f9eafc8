"""The label of one combination of a factorial: written by the plan, read by the tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

NAME = r"[a-z0-9][a-z0-9._-]{0,19}"
"""Form of the name of a factor or level."""

_WORD = re.compile(rf"(\+?)({NAME})=({NAME})")

ADDED = "+"
"""In front of a factor that is at its second level."""


@dataclass(frozen=True)
class Level:
    """Where one factor stands.

    Attributes:
        factor: its name.
        name: of the level.
        added: whether it is the second level, with what the factor adds; else the first, without.
    """

    factor: str
    name: str
    added: bool


def combination_label(levels: Iterable[Level]) -> str:
    """Return the label, like ``start=percentile +grid=log``; no label that people write has a ``=``."""
    return " ".join(
        f"{ADDED if level.added else ''}{level.factor}={level.name}" for level in levels
    )


def levels_of(label: str | None) -> tuple[Level, ...] | None:
    """Return the levels that a label tells; None where it is not that of a combination."""
    found = [_WORD.fullmatch(word) for word in (label or "").split(" ")]
    levels = tuple(Level(match[2], match[3], match[1] == ADDED) for match in found if match)
    different = len({level.factor for level in levels}) == len(found)
    return levels if different and len(levels) == len(found) else None

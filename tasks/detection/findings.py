"""Notes on a file while it is read: what is wrong with it, and what was changed, with places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vit_ptq_bench.tasks.errors import TaskError

SHOWN = 3
"""Places that are named; the others are counted."""

FEW = 3

FEW_SHARE = 0.05
"""So many of the objects may be left out, or `FEW`; more of them mean that the file is not what it seems."""


class Findings:
    """Places by what is wrong there, by what was changed there, and by why something was left out there."""

    def __init__(self) -> None:
        self._wrong: dict[str, list[str]] = {}
        self._changed: dict[str, list[str]] = {}
        self._left_out: dict[str, list[str]] = {}

    def wrong(self, what: str, place: str) -> None:
        """Note something for which the file is refused."""
        self._wrong.setdefault(what, []).append(place)

    def changed(self, what: str, place: str = "") -> None:
        """Note something that was read in another way than it is written."""
        self._changed.setdefault(what, []).append(place)

    def left_out(self, what: str, place: str) -> None:
        """Note an object that does not count."""
        self._left_out.setdefault(what, []).append(place)

    def refuse(self, path: Path, objects: int = 0) -> None:
        """Refuse the file if something is wrong, or more than a few of its objects were left out.

        Raises:
            TaskError: with the first places of each kind.
        """
        if self._wrong:
            raise TaskError(f"{path}: {_listed(self._wrong)}")
        if sum(map(len, self._left_out.values())) > max(FEW, FEW_SHARE * objects):
            raise TaskError(
                f"{path}: too many of the {objects} objects cannot be found by any detector: "
                f"{_listed(self._left_out)}; repair the file, or take them out of it"
            )

    def notes(self, path: Path) -> tuple[str, ...]:
        """Return a sentence for each kind of change."""
        found = [_sentence(what, places) for what, places in self._changed.items()]
        found += [
            f"left out, for no detector can find it: {_sentence(what, places)}"
            for what, places in self._left_out.items()
        ]
        return tuple(f"{path.name}: {text}" for text in found)


def _listed(kinds: dict[str, list[str]]) -> str:
    return "; ".join(_sentence(what, places) for what, places in kinds.items())


def _sentence(what: str, places: Sequence[str]) -> str:
    named = [place for place in places if place]
    if not named:
        return what
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return f"{what}: {', '.join(named[:SHOWN])}{more}"

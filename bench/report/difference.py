"""Two folders of records, or two revisions of one, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tabulate import tabulate

from vit_ptq_bench.bench.report.leaderboard import make_leaderboard
from vit_ptq_bench.bench.report.significance import SIGNIFICANCE, holm
from vit_ptq_bench.bench.report.standings import p_values
from vit_ptq_bench.bench.report.tables import Loader, Place, Row, seen

Verdict = Literal["better", "worse", "within noise", "same", "not tested", "gone", "new"]

TOLD: tuple[Verdict, ...] = ("better", "worse", "not tested", "gone", "new")
"""Verdicts whose rows are shown; of the others there are many, and they are counted."""

EXPLAINED = """\
Paired tests on the same images, corrected for all rows (Holm, 5 % together). A row is the same method with
the same settings on the same data; where data or weights changed it is gone and new."""


@dataclass(frozen=True)
class Change:
    """One row in both folders.

    Attributes:
        place: of its table.
        label: of the row.
        verdict: how the second stands to the first.
        before, after: figures in percent; None where there is none.
        p: corrected; None: not tested.
        versions: of the method, in the first folder and in the second.
    """

    place: Place
    label: str
    verdict: Verdict
    before: float | None
    after: float | None
    p: float | None
    versions: tuple[int | None, int | None]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            **self.place._asdict(),
            "label": self.label,
            "verdict": self.verdict,
            "before": self.before,
            "after": self.after,
            "p": self.p,
            "versions": list(self.versions),
        }


def compare_folders(first: Path, second: Path) -> list[Change]:
    """Return what became of every row that has a result in one of two folders, in the order of tables.

    Raises:
        BenchError: one of them is no folder.
    """
    before, after = _rows(first), _rows(second)
    keys = [key for key in before if key in after]
    p = _corrected([_p_value(before[key], after[key]) for key in keys])
    verdicts = {
        key: _both(*key, before[key], after[key], one) for key, one in zip(keys, p, strict=True)
    }
    changes = []
    for key in sorted(before.keys() | after.keys(), key=_order):
        place, label = key
        if key in verdicts:
            changes.append(verdicts[key])
        elif key in before:
            row = before[key][0]
            changes.append(
                Change(place, label, "gone", row.value, None, None, (_version(row), None))
            )
        else:
            row = after[key][0]
            changes.append(
                Change(place, label, "new", None, row.value, None, (None, _version(row)))
            )
    return changes


Key = tuple[Place, str]
Found = tuple[Row, Loader]


def _rows(folder: Path) -> dict[Key, Found]:
    made = make_leaderboard(folder)
    return {(t.place, row.label): (row, made.evidence) for t in made.tables for row in t.ranked}


def _order(key: Key) -> tuple[str, ...]:
    return (*(str(part) for part in key[0]), key[1])


def _version(row: Row) -> int:
    return row.record.spec.method.version


def _p_value(before: Found, after: Found) -> float:
    return float(p_values([seen(*before), seen(*after)])[0, 1])


def _corrected(p: Sequence[float]) -> list[float | None]:
    """Corrected p values; None where there was no test."""
    tested = [one for one in p if not np.isnan(one)]
    left = iter(holm(tested))
    return [None if np.isnan(one) else next(left) for one in p]


def _both(place: Place, label: str, before: Found, after: Found, p: float | None) -> Change:
    one, other = before[0].value or 0.0, after[0].value or 0.0
    verdict: Verdict
    if one == other:
        verdict = "same"
    elif p is None:
        verdict = "not tested"
    elif p >= SIGNIFICANCE:
        verdict = "within noise"
    else:
        verdict = "better" if other > one else "worse"
    versions = (_version(before[0]), _version(after[0]))
    return Change(place, label, verdict, one, other, p, versions)


def difference_text(changes: Sequence[Change]) -> str:
    """Return the changes as text for people."""
    counts = Counter(change.verdict for change in changes)
    everything: tuple[Verdict, ...] = (*TOLD, "within noise", "same")
    parts = [f"{counts[name]} {name}" for name in everything if counts[name]]
    lines = [", ".join(parts) or "no results in either"]
    rows = [_line(change) for name in TOLD for change in changes if change.verdict == name]
    if rows:
        head = ("", "method", "where", "before", "after", "p")
        lines += ["", tabulate(rows, head, disable_numparse=True), "", EXPLAINED]
    return "\n".join(lines)


def _line(change: Change) -> tuple[str, ...]:
    place = change.place
    where = f"{place.model} {place.bits} {place.protocol}" + (
        f" {place.scope}" if place.scope else ""
    )
    where += f" on {place.source}" if place.source else ""
    old, new = change.versions
    label = (
        change.label
        if old == new or None in change.versions
        else f"{change.label} (v{old}, v{new})"
    )
    return (change.verdict, label, where, _two(change.before), _two(change.after), _p(change.p))


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"

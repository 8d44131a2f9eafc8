"""The data of the page: every row of every table, and every record, with what they share told once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY, Record
from vit_ptq_bench.bench.report.factorial import Factorial
from vit_ptq_bench.bench.report.footnotes import convention
from vit_ptq_bench.bench.report.frame import commit
from vit_ptq_bench.bench.report.origins import gains_nothing
from vit_ptq_bench.bench.report.published import of_row
from vit_ptq_bench.bench.report.tables import Place, Row, Table

Json = dict[str, Any]

EFFECTS = ("gain alone", "gain on the rest", "main effect", "interaction")
"""Kinds of effects of a factorial that are gains."""

SHARED = ("environment", "common_differs", "metric_titles", "notes")
SHARED_OF_SPEC = ("table", "method", "model", "task")
"""Parts of a record, and of its specification, that many have alike."""


def page_data(
    records: Sequence[Record], found: Sequence[Table], parts: Sequence[Factorial] = ()
) -> Json:
    """Return JSON-ready data of a page.

    ``cells`` are the tables, ``rows`` their rows with the number of their cell, ``records`` the records by
    run id; in these a part that many have alike (``folded``) is its number in ``shared``. ``effects`` are
    those of factorials, with the title of their cell.
    """
    shared: dict[str, int] = {}
    rows = [
        _row(row, table, cell)
        for cell, table in enumerate(found)
        for row in (*_reference(table), *table.rows)
    ]
    known = {record.run_id: _folded(record.to_dict(), shared) for record in records}
    return {
        "cells": [_cell(table) for table in found],
        "rows": rows,
        "records": known,
        "effects": list(_effects(parts)),
        "folded": {"record": SHARED, "spec": SHARED_OF_SPEC},
        "shared": [json.loads(text) for text in shared],
    }


def _effects(parts: Sequence[Factorial]) -> Iterator[Json]:
    """What each part of each factorial gives, where it is known."""
    for one in parts:
        task, _, _, _, protocol, _, method, *_ = one.place
        name = f"{method} on {one.model} {one.bits}, {task}, {protocol}"
        for kind, which, estimate in one.effects():
            if estimate is not None and kind in EFFECTS:
                yield {
                    "name": name,
                    "kind": kind,
                    "parts": which,
                    "value": estimate.points,
                    "low": estimate.low,
                    "high": estimate.high,
                }


def cell_name(place: Place) -> str:
    """Return the title of a table in one line."""
    part = "" if place.limit is None else f", {place.limit} images"
    scope = f", {place.scope}" if place.scope else ""
    return f"{place.model} {place.bits}, {place.task}{part}, {place.protocol}{scope}{place.images}"


def _cell(table: Table) -> Json:
    full = table.reference
    place = table.place._asdict()
    source = place.pop("source")
    if source:  # the page filters and groups by scope, so that the two kinds of images stay apart
        scope = f"{place['scope'] or 'whole model'}{table.place.images}"
        place |= {"scope": scope, "source": source}
    return place | {
        "name": cell_name(table.place),
        "metric": table.metric,
        "titles": [list(pair) for pair in table.titles],
        "full": None if full is None else full.value,
    }


def _reference(table: Table) -> Sequence[Row]:
    return () if table.reference is None or not table.reference.runs else (table.reference,)


def _row(row: Row, table: Table, cell: int) -> Json:
    """A row: its name and kind, its figures, its costs, its runs."""
    record = row.record
    return {
        "cell": cell,
        "label": row.label,
        "method": record.spec.method.name,
        "version": record.spec.method.version,
        "fidelity": record.fidelity,
        "family": record.family,
        "reference": record.fidelity == REFERENCE_FIDELITY,
        "images": record.spec.calibration.images,
        "classes": row.classes,
        "convention": "; ".join(filter(None, [convention(record), gains_nothing(row, table.rows)])),
        "commit": commit(record),
        "status": sorted({one.status for one in (*row.runs, *row.failures)}),
        "runs": [one.run_id for one in (*row.runs, *row.failures)],
        **_figures(row, table),
        **_costs(row),
        "stored": (row.stored or None) if table.place.shared_out else None,
        "front": {cost: _on_front(row, table, cost) for cost in ("seconds", "size")},
    }


def _figures(row: Row, table: Table) -> Json:
    """What came out, by itself, beside full precision and beside what papers report."""
    low, high = row.interval or (None, None)
    full = None if table.reference is None else table.reference.value
    return {
        "rank": None if row.standing is None else row.standing.rank,
        "tested": row.standing is not None and row.standing.tested,
        "basis": None if row.standing is None else row.standing.basis,
        "value": row.value,
        "low": low,
        "high": high,
        "deviation": row.deviation,
        "drop": None if full is None or row.value is None else full - row.value,
        "metrics": {name: row.metric(name) for name, _ in table.titles},
        "published": [
            {
                "value": one.value,
                "written": one.written,
                "source": one.source,
                "classes": one.classes,
            }
            for one in of_row(table, row)
        ],
    }


def _costs(row: Row) -> dict[str, float | None]:
    return {
        "seconds": row.seconds,
        "memory": row.mean(lambda one: one.peak_memory_mb),
        "size": row.mean(lambda one: one.size_mb),
    }


def _on_front(row: Row, table: Table, cost: str) -> bool:
    """Whether no other row of the table is as good for less (Pareto)."""
    mine = _costs(row)[cost]
    if row.value is None or mine is None or row.standing is None:
        return False
    return not any(_dominates(other, row.value, mine, cost) for other in table.ranked)


def _dominates(other: Row, value: float, cost: float, kind: str) -> bool:
    theirs = _costs(other)[kind]
    if other.value is None or theirs is None:
        return False
    return (other.value >= value and theirs < cost) or (other.value > value and theirs <= cost)


def _folded(record: Json, shared: dict[str, int]) -> Json:
    """A record with what others have too replaced by its number in ``shared``, which grows."""
    spec = record["spec"] | {key: _number(record["spec"][key], shared) for key in SHARED_OF_SPEC}
    return record | {"spec": spec} | {key: _number(record[key], shared) for key in SHARED}


def _number(value: Any, shared: dict[str, int]) -> int:
    text = json.dumps(value, sort_keys=True)
    return shared.setdefault(text, len(shared))

"""The tables as JSON, for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.report.factorial import Factorial
from vit_ptq_bench.bench.report.page.data import cell_name, page_data
from vit_ptq_bench.bench.report.summary import choices, overall
from vit_ptq_bench.bench.report.tables import Table, by_section

Json = dict[str, Any]


def leaderboard_json(
    records: Sequence[Record],
    found: Sequence[Table],
    findings: Sequence[str],
    parts: Sequence[Factorial] = (),
) -> Json:
    """Return what the page shows as JSON-ready data.

    ``choices``: for each cell the best method, those like it, the cheapest of them, and, ``besides``, as good
    ones that do not compare; ``basis``: what that rests on (`standings.Basis`). ``overall``: places
    over cells by task, protocol, scope and source. ``cells``, ``rows``, ``effects``: see `page.data`; records
    themselves are files already, rows have their ids. ``findings``: what is wrong, in words.
    """
    data = page_data(records, found, parts)
    return {
        "choices": [
            {
                "cell": cell_name(one.table.place),
                "best": one.best.label,
                "value": one.best.value,
                "interval": one.best.interval,
                "like_it": [row.label for row in one.equal],
                "cheapest": None if one.cheapest is None else one.cheapest.label,
                "seconds": None if one.cheapest is None else one.cheapest.seconds,
                "besides": [row.label for row in one.besides],
                "tested": one.tested,
                "basis": one.basis,
            }
            for one in choices(found)
        ],
        "overall": _overall(found),
        "cells": data["cells"],
        "rows": data["rows"],
        "effects": data["effects"],
        "findings": list(findings),
    }


def _overall(found: Sequence[Table]) -> list[Json]:
    return [
        {
            "task": own[0].place.task,
            "protocol": own[0].place.protocol,
            "scope": own[0].place.scope,
            "source": own[0].place.source,
            "limit": own[0].place.limit,
            "places": [asdict(one) for one in overall(own)],
        }
        for own in by_section(found)
    ]

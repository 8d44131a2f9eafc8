"""A record as trackers of experiments take it: settings and figures, flat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.report.frame import to_frame

LEFT_OUT = ("parameters", "convention", "deviation")
"""Columns of the data frame that are told otherwise, or are prose."""

LONGEST = 500
"""Characters of a text; trackers refuse longer ones."""

FIGURES = (
    "value",
    "low",
    "high",
    "n",
    "peak_memory_mb",
    "size_mb",
    "weight_bits",
    "activation_bits",
)
"""Columns of the data frame that are figures, beside all that begin with one of `FIGURE_PREFIXES`."""

FIGURE_PREFIXES = ("metric_", "seconds_")


@dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        run_id: its id; the same run made again has the same.
        finished: when, so that a run that was made again is told from what was sent before.
        name: in a few words.
        ok: whether it ended well.
        settings: what it is and where it ran; texts and numbers by the names of the CSV's columns, the
            method's parameters as ``parameters.NAME``.
        figures: what came out and what it cost, by the names of the CSV's columns; all finite.
    """

    run_id: str
    finished: str
    name: str
    ok: bool
    settings: Mapping[str, str | int | float | bool]
    figures: Mapping[str, float]


def entry_of(record: Record) -> Entry:
    """Return a record as an entry."""
    row = {str(key): value for key, value in to_frame([record]).iloc[0].items()}
    spec = record.spec
    name = f"{spec.model.name} {spec.title(record.variant)} {spec.bits} {spec.protocol} seed {spec.seed}"
    figures = {key: value for key, value in row.items() if _is_figure(key)}
    settings = {
        key: value for key, value in row.items() if not _is_figure(key) and key not in LEFT_OUT
    }
    settings |= {f"parameters.{key}": value for key, value in spec.method.settings.items()}
    return Entry(
        record.run_id,
        record.finished or "",
        name,
        record.ok,
        {key: _plain(value) for key, value in settings.items() if not _is_missing(value)},
        {key: float(value) for key, value in figures.items() if _is_finite(value)},
    )


def _is_figure(column: str) -> bool:
    return column in FIGURES or column.startswith(FIGURE_PREFIXES)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _plain(value: Any) -> str | int | float | bool:
    """A number as it is, all else as text that is not too long."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool | int | float):
        return value
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."

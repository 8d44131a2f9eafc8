"""An inspection of a model as a chart: a row for each site, a panel for each figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.report.inspection import SITE_COLUMNS, Inspection

FORMS = (".html", ".svg")
"""Endings of the files that can be written."""

TITLES = {
    "mismatch": "channel mismatch",
    "precision": "average precision",
    "sqnr": "SQNR, dB",
    "clipped": "clipped, %",
    "asymmetry": "asymmetry",
    "gain": "gain",
}
"""Figures -> titles of their axes."""

STEP = 13
"""Pixels from one row to the next."""

PANEL = 150
"""Pixels of a panel's width."""


def check_file(path: Path) -> None:
    """Refuse a file that no chart can become, before there is anything to draw.

    Raises:
        BenchError: another ending, or no such folder.
    """
    if path.suffix.lower() not in FORMS:
        raise BenchError(f"--plot: {path}: the name must end in {' or '.join(FORMS)}")
    if not path.parent.is_dir():
        raise BenchError(f"--plot: {path.parent}: there is no such folder")


def draw(found: Inspection, columns: Sequence[str], path: Path) -> None:
    """Write the chart of some figures (names of `TITLES`), by the file's ending SVG or HTML.

    The HTML fetches nothing.

    Raises:
        OSError: the file cannot be written.
    """
    spec = chart(found, columns).to_dict()
    if path.suffix.lower() == ".svg":
        text = vl_convert.vegalite_to_svg(spec)
    else:
        text = vl_convert.vegalite_to_html(spec, bundle=True)
    path.write_text(text, encoding="utf-8")


def chart(found: Inspection, columns: Sequence[str]) -> alt.VConcatChart:
    """Return the panels of ``columns``, those of sites side by side, that of blocks below."""
    panels: list[Any] = []
    chosen = [name for name in columns if name in SITE_COLUMNS]
    if chosen:
        data = alt.InlineData(values=[_row(one) for one in found.to_dict()["sites"]])
        panels.append(alt.hconcat(*(_panel(data, name, name == chosen[0]) for name in chosen)))
    if "gain" in columns:
        values = [one | {"name": one["segment"]} for one in found.to_dict()["segments"]]
        panels.append(_panel(alt.InlineData(values=values), "gain", names=True))
    made: alt.VConcatChart = alt.vconcat(*panels).properties(title=list(found.title))
    return made


def _row(site: dict[str, Any]) -> dict[str, Any]:
    kind = "weight" if site["key"].endswith(".weight") else "activation"
    share = site["clipped"]
    return site | {
        "name": site["site"],
        "kind": kind,
        "clipped": None if share is None else 100 * share,
    }


def _panel(data: alt.InlineData, name: str, names: bool) -> alt.Chart:
    """Points of one figure, a row for each name in the given order."""
    axis = alt.Axis(labelLimit=400) if names else None
    made: alt.Chart = (
        alt.Chart(data)
        .mark_point(filled=True)
        .encode(
            x=alt.X(f"{name}:Q", title=TITLES[name]).scale(zero=False),
            y=alt.Y("name:N", sort=None, title=None, axis=axis),
            color=alt.Color("kind:N", title=None),
            tooltip=[alt.Tooltip("name:N"), alt.Tooltip(f"{name}:Q", format=".4g")],
        )
        .properties(width=PANEL, height=alt.Step(STEP))
    )
    return made

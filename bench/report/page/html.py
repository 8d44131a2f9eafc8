"""The page as one text.

The drawing library and the data are most of it, and stand in it packed: zlib, then base64. Builds of zlib
differ in what they pack to, so two pages are the same if they are the same unpacked.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import vl_convert

from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.report.classes import CLASSES
from vit_ptq_bench.bench.report.factorial import Factorial
from vit_ptq_bench.bench.report.page.charts import charts
from vit_ptq_bench.bench.report.page.data import cell_name, page_data
from vit_ptq_bench.bench.report.standings import SIGNS
from vit_ptq_bench.bench.report.summary import Overall, choices, counted, overall
from vit_ptq_bench.bench.report.tables import Table, by_section

SNIPPET = "window.vegaEmbed = vegaEmbed;"
"""What the bundle of the drawing library gives to the page."""

PACKED = re.compile(r'(<script type="text/plain" class="packed" id="\w+">)([^<]*)')
"""What is packed in a page."""

FOLDER = files("vit_ptq_bench.bench.report.page")


def render_page(
    records: Sequence[Record],
    found: Sequence[Table],
    findings: Sequence[str],
    parts: Sequence[Factorial] = (),
    beside: str = "",
) -> str:
    """Return the page: a pure function of its arguments.

    Args:
        records: those that the tables are made of.
        found: the tables.
        findings: what is wrong with files, a sentence each.
        parts: the factorials among the records.
        beside: a folder in that of the records, with the page of a real model; empty: there is none.
    """
    chosen = choices(found)
    marks = {name for table in found for row in table.rows for name in row.classes}
    return _template().render(
        style=_asset("page.css"),
        program=_asset("page.js"),
        unpacking=_asset("unpack.js"),
        drawing=_drawing(),
        data=packed(_json({"DATA": page_data(records, found, parts), "CHARTS": charts()})),
        answers=[
            (False, [one for one in chosen if not one.table.place.shared_out]),
            (True, [one for one in chosen if one.table.place.shared_out]),
        ],
        any_result=any(table.ranked for table in found),
        signs=SIGNS,
        classes={name: why for name, why in CLASSES.items() if name in marks},
        beside=beside,
        places=_places(found),
        cell_name=cell_name,
        records=len(records),
        findings=list(findings),
    )


def packed(text: str) -> str:
    """Return a text as the page holds what is large; nothing in it can end a script."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpacked(page: str) -> str:
    """Return a page with what is packed in it as it was; what cannot be unpacked stays."""
    return PACKED.sub(_unpacked, page)


def _unpacked(match: re.Match[str]) -> str:
    try:
        return match[1] + zlib.decompress(base64.b64decode(match[2], validate=True)).decode()
    except (ValueError, zlib.error):  # damaged: it is then like no page
        return match[0]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _places(found: Sequence[Table]) -> list[tuple[str, list[Overall]]]:
    """Title -> places over all cells of one task, protocol and scope."""
    placed = []
    for own in by_section(found):
        place = own[0].place
        scope = f", {place.scope}" if place.scope else ""
        title = f"{place.task}, {place.protocol}{scope}{place.images}"
        rows = overall(own)
        cells = len(counted(own))
        if cells > 1:
            placed.append((f"{title}, {cells} cells", rows))
    return placed


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html"))


@cache
def _asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def _drawing() -> str:
    """Vega, Vega-Lite and their embedding as one script, which sets ``vegaEmbed``, packed."""
    return packed(vl_convert.javascript_bundle(SNIPPET))

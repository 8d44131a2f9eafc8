"""The page as one text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import vl_convert

from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.report.factorial import Factorial
from vit_ptq_bench.bench.report.page.charts import charts
from vit_ptq_bench.bench.report.page.data import cell_name, page_data
from vit_ptq_bench.bench.report.summary import Overall, choices, overall
from vit_ptq_bench.bench.report.tables import Table, by_section

SNIPPET = "window.vegaEmbed = vegaEmbed;"
"""What the bundle of the drawing library gives to the page."""

FOLDER = files("vit_ptq_bench.bench.report.page")


def render_page(
    records: Sequence[Record],
    found: Sequence[Table],
    findings: Sequence[str],
    parts: Sequence[Factorial] = (),
) -> str:
    """Return the page: a pure function of records, tables and findings.

    Args:
        records: those that the tables are made of.
        found: the tables.
        findings: what is wrong with files, a sentence each.
        parts: the factorials among the records.
    """
    return _template().render(
        style=_asset("page.css"),
        program=_asset("page.js"),
        drawing=_drawing(),
        data=in_script(page_data(records, found, parts)),
        charts=in_script(charts()),
        choices=choices(found),
        places=_places(found),
        cell_name=cell_name,
        records=len(records),
        findings=list(findings),
    )


def in_script(value: Any) -> str:
    """JSON that can stand inside a script: nothing in it ends the script or begins a comment."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    for sign, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(sign, code)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _places(found: Sequence[Table]) -> list[tuple[str, list[Overall]]]:
    """Title -> places over all cells of one task, protocol and scope."""
    placed = []
    for own in by_section(found):
        place = own[0].place
        title = f"{place.task}, {place.protocol}" + (f", {place.scope}" if place.scope else "")
        rows = overall(own)
        if rows and len(own) > 1:
            placed.append((f"{title}, {len(own)} cells", rows))
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
    """Vega, Vega-Lite and their embedding as one script, which sets ``vegaEmbed``."""
    bundle: str = vl_convert.javascript_bundle(SNIPPET)
    return bundle.replace("</script", "<\\/script")

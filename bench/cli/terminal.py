"""Tables and pages drawn for a terminal of any width: nothing is cut, long cells go on in the next line."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import ClassVar

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, MarkdownElement, TableElement
from rich.table import Table
from rich.text import Text

SUMMARY = re.compile(r"<details>\s*<summary>(.*?)</summary>|</details>", re.DOTALL)


GAP = "  "
INDENT = "    "


def draw_rows(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that is as wide as the terminal at most.

    If it is wider, the last column stands below each row; if that is not enough either, cells are folded.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if sum(widths) + len(GAP) * (len(widths) - 1) <= console.width:
        for row in (head, ["-" * width for width in widths], *rows):
            _say(console, _aligned(row, widths))
    elif sum(widths[:-1]) + len(GAP) * (len(widths) - 2) <= console.width:
        _draw_below(console, head, rows, widths[:-1])
    else:
        _draw_folded(console, head, rows)


def _draw_below(
    console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]
) -> None:
    for row in (head, ["-" * width for width in widths] + [""], *rows):
        _say(console, _aligned(row[:-1], widths))
        for line in textwrap.wrap(row[-1], console.width - len(INDENT)):
            _say(console, INDENT + line)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _say(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)


def _draw_folded(console: Console, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = _empty()
    for title in head:
        table.add_column(Text(title), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def draw_markdown(console: Console, text: str) -> None:
    """Print markdown; what browsers fold stands under its summary."""
    console.print(
        _Page(SUMMARY.sub(lambda found: f"\n**{found[1]}**\n" if found[1] else "\n", text))
    )


def _empty() -> Table:
    return Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)


class _FoldedTable(TableElement):
    """A table of markdown whose cells are folded; rich cuts words that are longer than their column."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _empty()
        if self.header is not None and self.header.row is not None:
            for cell in self.header.row.cells:
                table.add_column(cell.content, overflow="fold")
        for row in self.body.rows if self.body is not None else ():
            table.add_row(*(cell.content for cell in row.cells))
        yield table


class _Page(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "table_open": _FoldedTable,
    }

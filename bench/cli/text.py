"""Plain tables for the terminal: aligned columns that survive a pipe and a narrow window."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from vit_ptq_bench.values import printable

NARROWEST = 40
"""Columns of a terminal on which tables can be drawn; COLUMNS=0 would leave nothing of them."""

LONGEST_RULE = 100
"""A long text in the last column wraps; the rule above it should not."""


def print_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns under a head: in a pipe each in one line, on a terminal folded to fit."""
    lines = [[printable(" ".join(cell.split())) for cell in row] for row in (head, *rows)]
    if sys.stdout.isatty():
        from rich.console import Console

        from vit_ptq_bench.bench.cli.terminal import draw_rows

        console = Console()
        if console.width >= NARROWEST:
            draw_rows(console, lines[0], lines[1:])
            return
    widths = [max(len(row[column]) for row in lines) for column in range(len(head))]
    lines.insert(1, ["-" * min(width, LONGEST_RULE) for width in widths])
    for row in lines:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def hours(number: float) -> str:
    """Hours as people say them: minutes below one, then seconds, days beside two days and more."""
    days = f" ({number / 24:.1f} days)" if number >= 48 else ""
    seconds = number * 3600
    if seconds < 6:  # that would be 0.0 min
        return f"{max(seconds, 0.1):.1f} s"
    return f"{number:.1f} h{days}" if number >= 1 else f"{number * 60:.1f} min"


def print_json(data: Any) -> None:
    """Print JSON-ready data; signs beyond ASCII are escaped, so that any terminal and pipe takes it."""
    print(json.dumps(data, indent=1, sort_keys=True, allow_nan=False))

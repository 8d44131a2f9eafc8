"""Plain tables for the terminal: aligned columns that survive a pipe and a narrow window."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_RULE = 100
"""A long text in the last column wraps; the rule above it should not."""


def print_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns under a head."""
    lines = [head, *rows]
    widths = [max(len(row[column]) for row in lines) for column in range(len(head))]
    for row in (head, ["-" * min(width, LONGEST_RULE) for width in widths], *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())

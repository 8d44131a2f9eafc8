"""`bench leaderboard`: make the leaderboard of records again."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_results
from vit_ptq_bench.bench.cli.text import print_json

if TYPE_CHECKING:
    from vit_ptq_bench.bench.report.leaderboard import Leaderboard

FORMATS = {
    "markdown": "leaderboard.md",
    "csv": "leaderboard.csv",
    "html": "index.html",
    "latex": "",
    "json": "",
}
"""Form -> the file that holds it; empty: none does."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "leaderboard",
        help="write the leaderboard of a folder of records",
        description="Write the leaderboard of a folder of records; runs no model.",
    )
    parser.set_defaults(function=run)
    add_results(parser)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if there are findings, or the files are not what the records give",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="write nothing; print the tables in this form",
    )
    parser.add_argument(
        "--json",
        action="store_const",
        dest="format",
        const="json",
        help="the same as --format json",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write, print or check the leaderboard and return the exit status."""
    from vit_ptq_bench.bench.report.leaderboard import make_leaderboard

    made = make_leaderboard(arguments.results)
    for text in made.all_findings():
        print(f"finding: {text}", file=sys.stderr)
    if arguments.check:
        return _checked(made)
    if arguments.format is not None:
        _print_as(arguments.format, made)
    else:
        print(made.write())
    return 0


def _checked(made: Leaderboard) -> int:
    """Tell which files are not what the records give."""
    stale = made.stale()
    for path in stale:
        print(f"{path} is not what the records give; run `bench leaderboard`", file=sys.stderr)
    return 1 if stale or made.findings else 0


def _print_as(form: str, made: Leaderboard) -> None:
    from vit_ptq_bench.bench.report.latex import render_latex
    from vit_ptq_bench.bench.report.machine import leaderboard_json

    if form == "json":
        print_json(leaderboard_json(made.records, made.tables, made.findings, made.factorials))
    elif form == "latex":
        print(render_latex(made.tables), end="")
    else:
        print(made.files[FORMATS[form]], end="")

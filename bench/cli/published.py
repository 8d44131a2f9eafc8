"""`bench published`: what papers report, and what has been measured of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.cli.options import RESULTS


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "published",
        help="print the best published figures, and which have been measured here",
        description="Print a page (markdown) of the best published figures per model and bit width.",
    )
    parser.set_defaults(function=run)
    parser.add_argument(
        "--results",
        metavar="DIR",
        action="append",
        type=Path,
        help=f"folder of records to hold beside them; may be repeated (default: {RESULTS} and its folders)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the page and return the exit status."""
    from vit_ptq_bench.bench.records.store import folders_of_records
    from vit_ptq_bench.bench.report.leaderboard import make_leaderboard
    from vit_ptq_bench.bench.report.published_page import render_published

    folders = arguments.results or folders_of_records(RESULTS)
    found = [table for folder in folders for table in make_leaderboard(folder).tables]
    print(render_published(found), end="")
    return 0

"""`bench leaderboard`: make the leaderboard of records again."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from vit_ptq_bench.bench.cli.options import add_results


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


def run(arguments: argparse.Namespace) -> int:
    """Write or check the leaderboard and return the exit status."""
    from vit_ptq_bench.bench.report.leaderboard import make_leaderboard

    made = make_leaderboard(arguments.results)
    for text in made.all_findings():
        print(f"finding: {text}", file=sys.stderr)
    if not arguments.check:
        print(made.write())
        return 0
    stale = made.stale()
    for path in stale:
        print(f"{path} is not what the records give; run `bench leaderboard`", file=sys.stderr)
    return 1 if stale or made.findings else 0

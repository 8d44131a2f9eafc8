"""`bench merge`: records of several folders in one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vit_ptq_bench.values import printable


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "merge",
        help="take the records of other folders into one",
        description="Write the records of the folders FROM into INTO, and its leaderboard anew. Equal "
        "records of a run become one; of different ones that which is there stays, the other is kept "
        "beside it, and told.",
    )
    parser.set_defaults(function=run)
    parser.add_argument("into", metavar="INTO", type=Path, help="folder that the records go to")
    parser.add_argument(
        "sources", metavar="FROM", type=Path, nargs="+", help="folder that they come from"
    )


def run(arguments: argparse.Namespace) -> int:
    """Merge and return the exit status: 1 if something has to be looked at."""
    from vit_ptq_bench.bench.records.merge import merge
    from vit_ptq_bench.bench.records.store import Store
    from vit_ptq_bench.bench.report.leaderboard import make_leaderboard

    merged = merge(arguments.into, arguments.sources)
    for finding in merged.findings:
        print(printable(finding))
    counts = merged.counts
    print(
        f"{counts['new']} new, {counts['equal']} equal, {counts['different']} different, {counts['kept']} "
        "not taken over for a better one"
    )
    if Store(arguments.into).files():
        print(f"leaderboard: {make_leaderboard(arguments.into).write()}")
    return 1 if merged.findings else 0

"""`bench upgrade`: give older records the present layout and a checksum."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from vit_ptq_bench.bench.cli.options import add_results


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "upgrade",
        help="write older records in the present layout, with checksums",
        description="Write the records of a folder in the present layout, which has checksums. Run ids, "
        "figures and outcomes stay; what is damaged or not borne out by its outcomes stays as it is. "
        "No sweep may be writing the folder meanwhile.",
    )
    parser.set_defaults(function=run)
    add_results(parser)


def run(arguments: argparse.Namespace) -> int:
    """Upgrade and return the exit status: 1 if a record had to be left."""
    from vit_ptq_bench.bench.records.upgrade import upgrade

    done = upgrade(arguments.results)
    for _, why in done.left:
        print(f"left as it is: {why}", file=sys.stderr)
    print(f"{done.written} records written anew, {done.present} were in the present layout")
    return 1 if done.left else 0

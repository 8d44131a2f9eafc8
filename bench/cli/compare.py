"""`bench compare`: two results image by image."""

from __future__ import annotations

import argparse
from typing import Any

from vit_ptq_bench.bench.cli.options import add_results


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("compare", help="compare two results image by image")
    parser.set_defaults(function=run)
    for name in ("first", "second"):
        parser.add_argument(name, metavar="RUN", help="run id (or its beginning), or a record file")
    add_results(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison and return the exit status."""
    from vit_ptq_bench.bench.report.compare import compare

    print(compare(arguments.first, arguments.second, arguments.results))
    return 0

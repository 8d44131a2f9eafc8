"""`bench show`: one record in full."""

from __future__ import annotations

import argparse
from typing import Any

from vit_ptq_bench.bench.cli.options import add_json, add_results
from vit_ptq_bench.bench.cli.text import print_json


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("show", help="show one result: what ran, what came out, where")
    parser.set_defaults(function=run)
    parser.add_argument("run", metavar="RUN", help="run id (or its beginning), or a record file")
    add_results(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the record and return the exit status."""
    from vit_ptq_bench.bench.records.store import load_record
    from vit_ptq_bench.bench.report.show import describe

    _, record = load_record(arguments.run, arguments.results)
    if arguments.json:
        print_json(record.to_dict())
    else:
        print(describe(record))
    return 0

"""`bench compare`: two results image by image, or two folders of results row by row."""

from __future__ import annotations

import argparse
from typing import Any

from vit_ptq_bench.bench.cli.options import add_json, add_results
from vit_ptq_bench.bench.cli.text import print_json

DESCRIPTION = """\
Two runs: image by image. Two folders, or revisions of the repository that the results lie in (REVISION or
REVISION:FOLDER): which rows became better, worse, are within noise, gone or new."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "compare",
        help="compare two results, folders of results or revisions",
        description=DESCRIPTION,
    )
    parser.set_defaults(function=run)
    for name in ("first", "second"):
        parser.add_argument(
            name,
            metavar=name.upper(),
            help="run id (or its beginning), record file, folder, or revision",
        )
    add_results(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison and return the exit status."""
    from vit_ptq_bench.bench.records.store import names_record

    runs = [names_record(text, arguments.results) for text in (arguments.first, arguments.second)]
    if not any(runs) and _folders(arguments):
        return 0
    from vit_ptq_bench.bench.report.compare import compare

    found = compare(arguments.first, arguments.second, arguments.results)
    if arguments.json:
        print_json(found.to_dict())
    else:
        print(found.to_text())
    return 0


def _folders(arguments: argparse.Namespace) -> bool:
    """Compare two folders or revisions; return False if one of them is neither."""
    from vit_ptq_bench.bench.report.difference import compare_folders, difference_text
    from vit_ptq_bench.bench.report.revisions import folder_of

    results = arguments.results
    with (
        folder_of(arguments.first, results) as first,
        folder_of(arguments.second, results) as second,
    ):
        if first is None or second is None:
            return False
        changes = compare_folders(first, second)
    if arguments.json:
        print_json([change.to_dict() for change in changes])
    else:
        print(difference_text(changes))
    return True

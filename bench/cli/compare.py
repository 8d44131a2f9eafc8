"""`bench compare`: two results image by image, or two folders of results row by row."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.cli.options import add_json, add_results
from vit_ptq_bench.bench.cli.text import print_json
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.values import shown

DESCRIPTION = """\
Two runs: image by image. Two folders, or revisions of the repository that the results lie in (REVISION or
REVISION:FOLDER): which rows became better, worse, are within noise, gone or new. With --ranks: whether two
folders or revisions put the methods in the same order, though on other models or data."""


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
    parser.add_argument(
        "--ranks",
        action="store_true",
        help="correlate the order of the methods in two folders or revisions",
    )
    add_results(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison and return the exit status."""
    from vit_ptq_bench.bench.records.store import names_record

    texts = () if arguments.ranks else (arguments.first, arguments.second)
    if not any(names_record(text, arguments.results) for text in texts) and _folders(arguments):
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
    from vit_ptq_bench.bench.report.revisions import folder_of

    results = arguments.results
    with (
        folder_of(arguments.first, results) as first,
        folder_of(arguments.second, results) as second,
    ):
        if first is None or second is None:
            if arguments.ranks:
                wrong = arguments.second if first is not None else arguments.first
                raise BenchError(
                    f"--ranks takes folders or revisions, and {shown(wrong)} is neither"
                )
            return False
        found, text = _ranks(first, second) if arguments.ranks else _rows(first, second)
    if arguments.json:
        print_json([one.to_dict() for one in found])
    else:
        print(text)
    return True


def _rows(first: Path, second: Path) -> tuple[Sequence[Any], str]:
    from vit_ptq_bench.bench.report.difference import compare_folders, difference_text

    changes = compare_folders(first, second)
    return changes, difference_text(changes)


def _ranks(first: Path, second: Path) -> tuple[Sequence[Any], str]:
    from vit_ptq_bench.bench.report.agreement import agreement_text, agreements

    found = agreements(first, second)
    return found, agreement_text(found)

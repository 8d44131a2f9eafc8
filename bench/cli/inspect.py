"""`bench inspect`: how hard each tensor of a model is to quantize, and how far its blocks carry errors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_json, add_options, add_task_options
from vit_ptq_bench.bench.cli.text import print_json, print_rows
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.inspect_options import InspectOptions
from vit_ptq_bench.bench.planning.names import unknown
from vit_ptq_bench.bench.planning.options import comma_list, resolved, words_source
from vit_ptq_bench.bench.report.inspection import COLUMNS, csv_text, gain_rows, site_rows

if TYPE_CHECKING:
    from vit_ptq_bench.bench.report.inspection import Inspection

DESCRIPTION = """\
Measure every tensor that gets a quantizer, and every block, of one model. Columns: {columns}."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    columns = "; ".join(f"{name}, {words}" for name, words in COLUMNS.items())
    parser = verbs.add_parser(
        "inspect",
        help="measure how hard each tensor of a model is to quantize",
        description=DESCRIPTION.format(columns=columns),
    )
    parser.set_defaults(function=run)
    parser.add_argument("task", metavar="TASK", help="a task of `bench list tasks`")
    parser.add_argument("model", metavar="MODEL", help="a model of the task")
    add_options(parser.add_argument_group("what is inspected"), InspectOptions)
    group = parser.add_argument_group("what is shown")
    group.add_argument(
        "--columns",
        metavar="LIST",
        type=comma_list,
        default=list(COLUMNS),
        help="some of the columns",
    )
    add_json(group)
    group.add_argument("--csv", action="store_true", help="print one table as CSV")
    group.add_argument("--plot", metavar="FILE", type=Path, help="draw a chart too: .html or .svg")
    add_task_options(parser, leave_out="limit")


def run(arguments: argparse.Namespace) -> int:
    """Print the figures and return the exit status."""
    options = resolved(InspectOptions, [words_source(vars(arguments))])
    _check(arguments)
    from vit_ptq_bench.bench.execution.inspection import inspected

    found = inspected(arguments.task, arguments.model, options, vars(arguments))
    if arguments.plot is not None:
        from vit_ptq_bench.bench.report.inspection_chart import draw

        draw(found, arguments.columns, arguments.plot)
    if arguments.json:
        print_json(found.to_dict())
    elif arguments.csv:
        print(csv_text(found), end="")
    else:
        _print_tables(found, arguments.columns)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be shown, before anything is measured.

    Raises:
        BenchError: an unknown column, two forms at once, a file that no chart can become.
    """
    for name in arguments.columns:
        if name not in COLUMNS:
            raise unknown("column", name, COLUMNS)
    if not arguments.columns:
        raise BenchError("--columns: the list is empty")
    if arguments.json and arguments.csv:
        raise BenchError("--json and --csv: choose one of both")
    if arguments.plot is not None:
        from vit_ptq_bench.bench.report.inspection_chart import check_file

        check_file(arguments.plot)


def _print_tables(found: Inspection, columns: Sequence[str]) -> None:
    print("\n".join(found.title))
    head, rows = site_rows(found, columns)
    if len(head) > 1:
        print()
        print_rows(head, rows)
    if "gain" in columns:
        print()
        print_rows(*gain_rows(found))

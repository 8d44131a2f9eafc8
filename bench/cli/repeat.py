"""`bench repeat`: make one recorded run again, and hold the two against each other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_options, add_results, add_task_options
from vit_ptq_bench.bench.planning.settings import RunOptions

if TYPE_CHECKING:
    from vit_ptq_bench.bench.records.record import Record
    from vit_ptq_bench.bench.records.store import Store

HERE = ("output", "device", "timeout", "plugin", "save_models")
"""Options of `bench run` that one run has too."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "repeat",
        help="make one recorded run again and compare",
        description="Run again what a record says, with its full-precision reference, and compare.",
    )
    parser.set_defaults(function=run)
    parser.add_argument("run", metavar="RUN", help="run id (or its beginning), or a record file")
    add_results(parser)
    group = parser.add_argument_group("execution")
    for name in HERE:
        add_options(group, RunOptions, only=name)
    add_task_options(parser, leave_out="limit")  # the record says it


def run(arguments: argparse.Namespace) -> int:
    """Repeat the run; return 0 if the figure is the same."""
    from vit_ptq_bench.bench.cli.run import print_summary, say
    from vit_ptq_bench.bench.execution.interrupt import raise_interrupts
    from vit_ptq_bench.bench.execution.session import carry_out
    from vit_ptq_bench.bench.planning.repeat import differences, planned, suite_of
    from vit_ptq_bench.bench.planning.settings import resolve_suites
    from vit_ptq_bench.bench.records.store import Store, load_record

    store, record = load_record(arguments.run, arguments.results)
    words = vars(arguments) | {"overwrite": "always", "workers": "1"}
    words["output"] = arguments.output or Path("output") / f"repeat-{record.run_id}"
    options = resolve_suites([suite_of(record)], words)
    with raise_interrupts():
        session = carry_out(options, say=say)
    print_summary(session)
    again = planned([decision.run for decision in session.decisions], record)
    for sentence in differences(record.spec, again.spec):
        print(f"not the same run: {sentence}")
    made = Store(options.folder).read(again)
    if session.interrupted or made is None or not made.ok:
        return 1
    return _compared(record, store, made, Store(options.folder))


def _compared(record: Record, store: Store, made: Record, own: Store) -> int:
    """Print both figures and on how many images they agree."""
    if record.value is None or made.value is None:
        print(f"recorded: {record.status}; repeated: {made.value:.2f} %")
        return 1
    print(f"recorded {record.value:.2f} %, repeated {made.value:.2f} %")
    before, now = store.outcomes(record), own.outcomes(made)
    if before is None or now is None or len(before) != len(now):
        print("their images cannot be compared: outcomes are missing or of other images")
    else:
        unlike = int((before != now).sum())
        print(
            f"{unlike} of {len(now)} images came out otherwise"
            if unlike
            else "the same on each image"
        )
    return 0 if record.value == made.value else 1

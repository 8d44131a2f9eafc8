"""`bench retry`: what has failed in a folder, once more."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_options, add_task_options
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.settings import RunOptions

if TYPE_CHECKING:
    from vit_ptq_bench.bench.records.record import Record

HERE = (
    "device",
    "workers",
    "executor",
    "slurm",
    "timeout",
    "plugin",
    "dead_after",
    "deterministic",
)
"""Options of `bench run` that count here."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "retry",
        help="try the failed runs of a folder again",
        description="Run again what has failed, was killed or took too long, or was skipped for such a run; "
        "from the records alone, whatever command has made them.",
    )
    parser.set_defaults(function=run)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the records")
    group = parser.add_argument_group("execution")
    for name in HERE:
        add_options(group, RunOptions, only=name)
    add_task_options(parser, leave_out="limit")  # the records say it


def run(arguments: argparse.Namespace) -> int:
    """Try again; return 0 if all went well."""
    from vit_ptq_bench.bench.cli.run import INTERRUPTED, print_summary, say
    from vit_ptq_bench.bench.execution.interrupt import raise_interrupts
    from vit_ptq_bench.bench.execution.session import carry_out
    from vit_ptq_bench.bench.planning.repeat import suite_of
    from vit_ptq_bench.bench.planning.settings import resolve_suites
    from vit_ptq_bench.bench.records.store import Store

    records = Store(arguments.folder).records()
    if not records:
        raise BenchError(f"there are no records in {arguments.folder}")
    failed = [record for record in records if not record.ok]
    if not failed:
        print(f"no run in {arguments.folder} has failed")
        return 0
    words = vars(arguments) | {"output": arguments.folder, "overwrite": "failed"}
    options = resolve_suites([suite_of(record) for record in failed], words)
    with raise_interrupts():
        session = carry_out(options, say=say)
    print_summary(session)
    planned = {decision.run.run_id for decision in session.decisions}
    other = [record for record in failed if record.run_id not in planned]
    _tell_of_others(other)
    if session.interrupted:
        return INTERRUPTED
    return 1 if session.failed or session.lost or other else 0


def _tell_of_others(records: list[Record]) -> None:
    for record in records:
        print(
            f"not tried again: {record.run_id}, {record.spec.title(record.variant)}: this version, these "
            "data or these settings make another run of it"
        )

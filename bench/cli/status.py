"""`bench status`: how far the sweeps of a folder are, from any machine, while they run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_json, add_options
from vit_ptq_bench.bench.cli.text import print_json, print_rows
from vit_ptq_bench.bench.planning.settings import RunOptions
from vit_ptq_bench.values import printable

if TYPE_CHECKING:
    from vit_ptq_bench.bench.sharing.status import Status

SHOWN = 10
"""Failed runs that are listed; `--json` has all."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "status",
        help="how far the sweeps of a folder are: done, running where, failed, left",
        description="Say how far the sweeps of a folder are, on whatever machines they run.",
    )
    parser.set_defaults(function=run)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="output folder of the sweeps")
    add_options(parser, RunOptions, only="dead_after")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the status; return 1 if a run has failed or a record is damaged."""
    from vit_ptq_bench.bench.errors import BenchError
    from vit_ptq_bench.bench.planning.options import resolved, words_source
    from vit_ptq_bench.bench.sharing.status import status_of

    if not arguments.folder.is_dir():
        raise BenchError(f"there is no folder {arguments.folder}")
    options = resolved(RunOptions, [words_source({"dead_after": arguments.dead_after})])
    status = status_of(arguments.folder, options.dead_after)
    if arguments.json:
        print_json(status.to_dict())
    else:
        _print(status, arguments.folder)
    return 1 if status.failed or status.findings else 0


def _print(status: Status, folder: Path) -> None:
    from vit_ptq_bench.bench.execution.forecast import duration

    counts = ", ".join(f"{number} {name}" for name, number in sorted(status.statuses.items()))
    planned = f" of {status.planned} planned" if status.planned else ""
    print(
        f"{printable(str(folder))}: {status.statuses.total()} records{planned}: {counts or 'none'}"
    )
    if status.at_work:
        left = duration(status.left_seconds)
        print(f"{len(status.running)} running, {status.left} left, about {left} to the end")
    elif status.left:
        print(f"{status.left} left, and no sweep is at work: the command below goes on")
    _print_running(status)
    _print_sweeps(status)
    for record in status.failed[:SHOWN]:
        told = " ".join(str((record.error or {}).get("message", "")).split())
        print(
            printable(
                f"{record.status}: {record.run_id}  {record.spec.title(record.variant)}: {told}"
            )
        )
    if status.failed:
        print(f"{len(status.failed)} failed; `bench retry {folder}` tries them again")
    for finding in status.findings:
        print(printable(finding))


def _print_running(status: Status) -> None:
    from vit_ptq_bench.bench.execution.forecast import duration

    rows = []
    for claim in status.running:
        told = status.phases.get(claim.run_id)
        place = f"{claim.place.host} {claim.facts.get('device', '')}"
        time = duration(told.seconds) if told else "-:--"
        phase = told.phase if told else ""
        rows.append((claim.run_id[:8], place, phase, time, str(claim.facts.get("label", ""))))
    if rows:
        print_rows(("run", "where", "phase", "since", "what"), rows)


def _print_sweeps(status: Status) -> None:
    rows = []
    for sweep in status.sweeps:
        state = sweep.report.state
        if state == "running" and sweep.name not in status.at_work:
            state = "gone"
        command = " ".join(["bench", *sweep.report.command])
        rows.append((state, sweep.report.began, str(sweep.place), command))
    if rows:
        print_rows(("sweep", "began", "where", "command"), rows)

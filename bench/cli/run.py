"""`bench run`: carry out a suite."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_options, add_task_options
from vit_ptq_bench.bench.cli.text import NARROWEST, print_rows
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.planning.options import environment_name
from vit_ptq_bench.bench.planning.settings import RunOptions, SuiteOverrides, resolve_run
from vit_ptq_bench.values import printable

if TYPE_CHECKING:
    from vit_ptq_bench.bench.execution.session import Session
    from vit_ptq_bench.bench.planning.overwrite import Decision

INTERRUPTED = 130


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "run",
        help="run a suite and write its leaderboard",
        description="Run what a suite asks for and has no finished record; write the leaderboard.",
    )
    parser.set_defaults(function=run)
    parser.add_argument("suite", metavar="SUITE", help="name of a bundled suite, or a TOML file")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, and why; run nothing"
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="with --dry-run: measure each model on this machine, to tell how long it takes here",
    )
    group = parser.add_argument_group(
        "execution",
        "also from a config file ([run] in bench.toml) or the environment "
        f"({environment_name('run', '<option>')}, like {environment_name('run', 'device')})",
    )
    add_options(group, RunOptions)
    group = parser.add_argument_group(
        "instead of what the suite says",
        "lists are separated by commas; names may be globs like 'vit_*'",
    )
    add_options(group, SuiteOverrides)
    add_task_options(parser, leave_out="limit")  # a run's limit is the suite's


def run(arguments: argparse.Namespace) -> int:
    """Carry out ``bench run`` and return the exit status."""
    options = resolve_run(vars(arguments))
    if arguments.dry_run:
        return _dry_run(options, arguments.probe)
    if arguments.probe:
        raise BenchError("--probe tells how long a sweep would take: give --dry-run with it")
    from vit_ptq_bench.bench.execution.interrupt import raise_interrupts

    # Also while what the sweep needs is imported, and while its end is printed.
    with raise_interrupts():
        return _carry_out(options)


def _dry_run(options: RunOptions, probe: bool) -> int:
    """Print the plan, and what the runs that are due would take."""
    from vit_ptq_bench.bench.execution.devices import check_devices
    from vit_ptq_bench.bench.planning.overwrite import decisions_of
    from vit_ptq_bench.bench.planning.pretrained import to_fetch

    check_devices(options)
    decisions = decisions_of(options, say)
    print_plan(decisions, options.folder)
    due = [decision.run for decision in decisions if decision.due]
    if due:
        from vit_ptq_bench.bench.cli.expectation import print_expectation

        for sentence in to_fetch(due, options.tasks):
            print(sentence)
        print_expectation(options, due, probe)
    return 0


def _carry_out(options: RunOptions) -> int:
    from vit_ptq_bench.bench.execution.session import carry_out

    session = carry_out(options, say=say)
    if session.leaderboard is not None:
        print_leaderboard(session.leaderboard)
    print_summary(session)
    if session.interrupted:
        return INTERRUPTED
    return 1 if session.failed or session.lost else 0


def say(sentence: str) -> None:
    """Print a sentence at once, also into a pipe: what comes next may take a while."""
    print(printable(sentence), flush=True)


def print_leaderboard(path: Path) -> None:
    """Print the leaderboard: drawn on a terminal, as the markdown itself into a file or pipe."""
    text = path.read_text(encoding="utf-8")
    from rich.console import Console

    console = Console()
    if sys.stdout.isatty() and console.width >= NARROWEST:
        from vit_ptq_bench.bench.cli.terminal import draw_markdown

        draw_markdown(console, text)
    else:
        print(text)
    print(f"leaderboard: {path}")


def print_plan(decisions: Sequence[Decision], output: Path) -> None:
    """Print the plan as a table, and how many runs it would make."""
    head = ("run", "model", "method", "bits", "protocol", "seed", "runs", "why")
    rows = []
    for decision in decisions:
        run, spec = decision.run, decision.run.spec
        what = (spec.run_id, spec.model.name, run.title, spec.bits, spec.protocol, str(spec.seed))
        rows.append((*what, "yes" if decision.due else "no", decision.why))
    print_rows(head, rows)
    due = sum(decision.due for decision in decisions)
    print(f"{due} of {len(decisions)} runs would run; their records would go to {output}")


def print_summary(session: Session) -> None:
    """Print how it went, and how to go on."""
    decisions = session.decisions
    before = sum(not decision.due for decision in decisions)
    counts = ", ".join(f"{number} {name}" for name, number in sorted(session.tally.items()))
    others = f", {session.elsewhere} of them by other sweeps" if session.elsewhere else ""
    print(
        f"{len(decisions)} runs: {before} had their record; now {counts or 'nothing to do'}{others}"
    )
    if session.lost:
        first = session.lost[0]
        print(
            f"{len(session.lost)} lost: their records were written and are not there any more, or not "
            f"whole (the first is {first.run_id}, {first.label}); was the output folder changed by "
            "somebody else? The same command makes them again"
        )
    if session.findings:
        print(
            f"findings about the records of this folder: {len(session.findings)}; they stand at the end of "
            f"the leaderboard, the first is: {session.findings[0]}"
        )
    if session.interrupted:
        print("interrupted: the finished runs are kept, and the same command goes on from here")
    elif session.failed:
        print("some runs failed: `bench show RUN_ID` tells why; the same command tries them again")

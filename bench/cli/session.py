"""`bench run` from its options to its exit status."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from vit_ptq_bench.bench.cli.task import task_flags
from vit_ptq_bench.bench.cli.text import print_rows
from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.execution.cache import DEFAULT_GB, GB
from vit_ptq_bench.bench.execution.devices import (
    Slot,
    check_device,
    core_count,
    default_workers,
    make_slots,
)
from vit_ptq_bench.bench.execution.display import make_display
from vit_ptq_bench.bench.execution.environment import source_state
from vit_ptq_bench.bench.execution.interrupt import hold_interrupts
from vit_ptq_bench.bench.execution.lock import lock
from vit_ptq_bench.bench.execution.sweep import Settings, Sweep
from vit_ptq_bench.bench.planning import plugins, registry
from vit_ptq_bench.bench.planning.overwrite import Decision, decide, relabel
from vit_ptq_bench.bench.planning.plan import Run, build_plan
from vit_ptq_bench.bench.planning.settings import Config
from vit_ptq_bench.bench.planning.suite import Suite
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.publish import publish
from vit_ptq_bench.tasks.api.task import TaskOptions

FAILURES = ("failed", "oom", "timeout")


INTERRUPTED = 130


def carry_out(
    suites: Sequence[Suite], arguments: argparse.Namespace, config: Config, output: Path
) -> int:
    """Plan ``suites``, run what is due, write the leaderboard; return the exit status.

    Raises:
        BenchError: anything the user has to mend first.
    """
    console = Console()
    plugins.load(arguments.plugin)
    devices = choose_devices(arguments, config)
    options, runs = plan_all(suites, arguments, config)
    slots = choose_slots(devices, options, arguments, config)
    store = Store(output)
    if arguments.dry_run:
        print_plan(decide(runs, store, arguments.overwrite), output)
        return 0
    with lock(output):
        settings = Settings(
            output=output,
            task_options=options,
            slots=slots,
            timeout=arguments.timeout or config.setting("timeout", None),
            save_models=arguments.save_models,
            plugins=tuple(path.resolve() for path in arguments.plugin),
            source=source_state(),
            cache_bytes=cache_bytes(arguments, config),
        )
        decisions = decide(runs, store, arguments.overwrite)
        relabel(decisions, store)
        tally, status = _sweep(console, decisions, store, settings)
        publish(console, output)
    print_summary(decisions, tally, status)
    return status


def plan_all(
    suites: Sequence[Suite], arguments: argparse.Namespace, config: Config
) -> tuple[dict[str, TaskOptions], list[Run]]:
    """The options of each task, and the runs of all suites.

    What the command line says instead of the suites (models, scopes) may fit only one of them: a suite that
    it does not fit is left out, if there is another that it fits.

    Raises:
        BenchError: two suites of one task with different options; what `build_plan` raises.
    """
    options: dict[str, TaskOptions] = {}
    runs: list[Run] = []
    failures: list[BenchError] = []
    for suite in suites:
        given = task_flags(arguments) | {"limit": suite.limit}
        own = config.task_options(suite.task, TaskOptions, given, suite.task_options)
        if options.setdefault(suite.task, own) != own:
            raise suite.error("an included suite of the same task has other options", "include")
        try:
            runs += build_plan(suite, own)
        except BenchError as error:
            if len(suites) == 1 or not {"models", "scopes"} & set(suite.overridden):
                raise
            failures.append(error)
    if not runs and failures:
        raise failures[0]
    return options, runs


def choose_devices(arguments: argparse.Namespace, config: Config) -> list[str]:
    """Names of the devices to run on.

    Raises:
        BenchError: one that torch does not know or that is not there.
    """
    devices = arguments.device or config.setting("device", "cpu").split(",")
    for device in devices:
        check_device(device)
    return list(devices)


def cache_bytes(arguments: argparse.Namespace, config: Config) -> int:
    """Bytes that the runs may keep on disk for each other."""
    given = arguments.share_gb
    chosen = config.setting("share_gb", DEFAULT_GB) if given is None else given
    return int(GB * chosen)


def choose_slots(
    devices: Sequence[str], tasks: Iterable[str], arguments: argparse.Namespace, config: Config
) -> list[Slot]:
    """One slot per worker, for runs of ``tasks``."""
    small = all(registry.is_small(task) for task in tasks)
    usual = default_workers(devices, core_count(), small)
    workers = arguments.workers or config.setting("workers", usual)
    return make_slots(workers, devices, core_count())


def _sweep(
    console: Console, decisions: Sequence[Decision], store: Store, settings: Settings
) -> tuple[Counter[str], int]:
    """Run what is due; a Ctrl-C ends it early and the leaderboard is still written."""
    due = sum(decision.due for decision in decisions)
    with hold_interrupts() as interrupt, make_display(console, due) as display:
        sweep = Sweep(decisions, store, settings, display)
        try:
            sweep.run(interrupt)
        except KeyboardInterrupt:
            return sweep.tally, INTERRUPTED
    left = {decision.status for decision in decisions if not decision.due}
    return sweep.tally, 1 if any(name in left or sweep.tally[name] for name in FAILURES) else 0


def print_plan(decisions: Sequence[Decision], output: Path) -> None:
    """The plan as a table, and how many runs it would make."""
    head = ("run", "model", "method", "bits", "protocol", "seed", "runs", "why")
    rows = []
    for decision in decisions:
        run = decision.run
        what = (run.run_id, run.model, run.title, run.bits, run.protocol, str(run.seed))
        rows.append((*what, "yes" if decision.due else "no", decision.why))
    print_rows(head, rows)
    due = sum(decision.due for decision in decisions)
    print(f"{due} of {len(decisions)} runs would run; their records would go to {output}")


def print_summary(decisions: Sequence[Decision], tally: Counter[str], status: int) -> None:
    """How it went, and how to go on."""
    before = sum(not decision.due for decision in decisions)
    counts = ", ".join(f"{number} {name}" for name, number in sorted(tally.items()))
    print(f"{len(decisions)} runs: {before} had their record; now {counts or 'nothing to do'}")
    if status == INTERRUPTED:
        print("interrupted: the finished runs are kept, and the same command goes on from here")
    elif status:
        print("some runs failed: `bench show RUN_ID` tells why; the same command tries them again")

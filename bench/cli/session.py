"""`bench run` from its options to its exit status."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from bench import lookup, plugins
from bench.cli.task import task_flags
from bench.cli.text import print_rows
from bench.config import Config
from bench.decide import Decision, decide
from bench.display import make_display
from bench.environment import core_count, source_state
from bench.errors import BenchError
from bench.executor import Slot, default_workers, make_slots
from bench.interrupt import hold_interrupts
from bench.lock import lock
from bench.plan import Run, build_plan
from bench.publish import publish
from bench.shared import DEFAULT_GB, GB
from bench.store import Store
from bench.suite import Suite
from bench.sweep import Settings, Sweep, cannot_write
from tasks import TaskOptions

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
            shared_bytes=shared_bytes(arguments, config),
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


def shared_bytes(arguments: argparse.Namespace, config: Config) -> int:
    """Bytes that the runs may keep on disk for each other."""
    given = arguments.share_gb
    chosen = config.setting("share_gb", DEFAULT_GB) if given is None else given
    return int(GB * chosen)


def choose_slots(
    devices: Sequence[str], tasks: Iterable[str], arguments: argparse.Namespace, config: Config
) -> list[Slot]:
    """One slot per worker, for runs of ``tasks``."""
    small = all(lookup.is_small(task) for task in tasks)
    usual = default_workers(devices, core_count(), small)
    workers = arguments.workers or config.setting("workers", usual)
    return make_slots(workers, devices, core_count())


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Raises:
        BenchError: saying what there is.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BenchError(f"unknown device {name!r}; use cpu, cuda:0, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BenchError(
            f"there is no device {name!r}: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices here"
        )


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


def relabel(decisions: Sequence[Decision], store: Store) -> None:
    """Give finished records the suite's present labels: a new label is no reason to run again.

    Raises:
        BenchError: a record cannot be written.
    """
    for decision in decisions:
        record, variant = decision.record, decision.run.variant
        if decision.due or record is None or variant in (None, record.variant):
            continue
        try:
            store.write(replace(record, variant=variant))
        except OSError as error:
            raise cannot_write(store.root, error.strerror or str(error)) from error


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

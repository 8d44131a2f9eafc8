"""A sweep from its settings to its leaderboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vit_ptq_bench.bench.execution import forkserver, scratch
from vit_ptq_bench.bench.execution.devices import check_devices
from vit_ptq_bench.bench.execution.display import make_display
from vit_ptq_bench.bench.execution.interrupt import hold_interrupts, raise_interrupts
from vit_ptq_bench.bench.execution.sweep import Sweep
from vit_ptq_bench.bench.planning import plugins, registry
from vit_ptq_bench.bench.planning.overwrite import Decision, decide, planned, relabel
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.planning.settings import RunOptions
from vit_ptq_bench.bench.planning.size import Say, silent
from vit_ptq_bench.bench.records.files import prepare
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.leaderboard import make_leaderboard

FAILURES = ("failed", "oom", "timeout")


@dataclass(frozen=True)
class Session:
    """What became of a sweep.

    Attributes:
        decisions: what it was asked to run, and what had its record before.
        tally: how many runs ended with which status and have their record, those done before not counted.
        lost: runs whose record was written and is not there any more, or not whole.
        interrupted: whether somebody stopped it.
        leaderboard: the file; None while there is no record.
        findings: what is wrong with the records of the folder, a sentence each.
        elsewhere: how many of the tally other sweeps in the folder have made.
    """

    decisions: Sequence[Decision]
    tally: Counter[str]
    lost: Sequence[Run]
    interrupted: bool
    leaderboard: Path | None
    findings: Sequence[str] = ()
    elsewhere: int = 0

    @property
    def failed(self) -> bool:
        """Whether a run of the plan has failed, now or before."""
        left = {decision.status for decision in self.decisions if not decision.due}
        return any(name in left or self.tally[name] for name in FAILURES)


def carry_out(options: RunOptions, console: Console | None = None, say: Say = silent) -> Session:
    """Run what is due of a sweep and write the leaderboard, also of what is there after a Ctrl-C.

    SIGTERM and SIGHUP count as Ctrl-C.

    Args:
        options: from `resolve_run`.
        console: shows the progress; None: the terminal.
        say: takes what the plan says before it is made, see `plan_all`.

    Raises:
        BenchError: anything the user has to mend first, or a record that cannot be written.
    """
    with raise_interrupts():
        prepare(options.folder)
        scratch.remove_leftovers()
        plugins.load(options.plugin)
        if options.executor == "local":
            forkserver.warm_up(*_preloads(options))  # it imports torch while we plan
        check_devices(options)
        return _swept(options, planned(options, say), console or Console())


def _preloads(options: RunOptions) -> list[str]:
    """Modules that the runs' processes need beside the worker's own."""
    known = registry.tasks()  # the plan refuses a task that is not among them
    classes = [known[suite.task] for suite in options.suites if suite.task in known]
    return list(dict.fromkeys(name for cls in classes for name in cls.preload))


def _swept(options: RunOptions, runs: Sequence[Run], console: Console) -> Session:
    """Carry out the plan."""
    store = Store(options.folder)
    decisions = decide(runs, store, options.overwrite)
    relabel(decisions, store)
    sweep, interrupted = _run(options, decisions, store, console)
    ended = sweep.ended | sweep.company.elsewhere
    lost = _lost(decisions, ended, store)
    gone = {run.run_id for run in lost}
    tally = Counter(status for run_id, status in ended.items() if run_id not in gone)
    elsewhere = len(sweep.company.elsewhere)
    if not store.files():
        return Session(decisions, tally, lost, interrupted, None)
    file, findings = _leaderboard(store)
    return Session(decisions, tally, lost, interrupted, file, findings, elsewhere)


def _leaderboard(store: Store) -> tuple[Path, list[str]]:
    """Write the leaderboard of all that is there, also of what another sweep writes just now."""
    while True:
        files = store.files()
        made = make_leaderboard(store.root)
        path = made.write()
        if store.files() == files:
            return path, list(made.all_findings())


def _lost(decisions: Sequence[Decision], ended: Mapping[str, str], store: Store) -> list[Run]:
    """The runs whose record was there, and is not: somebody has removed or damaged the file.

    What a process said it had written is no proof that it is still there.
    """
    lost = []
    for decision in decisions:
        run = decision.run
        status = decision.status if not decision.due else ended.get(run.run_id)
        if status is None:
            continue  # not begun, or stopped
        record = store.read(run)
        if record is None or (status == "ok" and not record.ok):
            lost.append(run)
    return lost


def _run(
    options: RunOptions, decisions: Sequence[Decision], store: Store, console: Console
) -> tuple[Sweep, bool]:
    """Run what is due; return the sweep, and whether somebody stopped it."""
    due = sum(decision.due for decision in decisions)
    with hold_interrupts() as interrupt, make_display(console, due) as display:
        sweep = Sweep(decisions, store, options, display)
        try:
            sweep.run(interrupt)
        except KeyboardInterrupt:
            return sweep, True
    return sweep, False

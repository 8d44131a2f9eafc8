"""A sweep from its settings to its leaderboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vit_ptq_bench.bench.execution.devices import check_device
from vit_ptq_bench.bench.execution.display import make_display
from vit_ptq_bench.bench.execution.forkserver import start_method
from vit_ptq_bench.bench.execution.interrupt import hold_interrupts
from vit_ptq_bench.bench.execution.lock import lock
from vit_ptq_bench.bench.execution.sweep import Sweep
from vit_ptq_bench.bench.planning import plugins, registry
from vit_ptq_bench.bench.planning.overwrite import Decision, decide, relabel
from vit_ptq_bench.bench.planning.plan import plan_all
from vit_ptq_bench.bench.planning.settings import RunOptions
from vit_ptq_bench.bench.planning.size import Say, silent
from vit_ptq_bench.bench.records.files import prepare
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.report.leaderboard import write_leaderboard

FAILURES = ("failed", "oom", "timeout")


@dataclass(frozen=True)
class Session:
    """What became of a sweep.

    Attributes:
        decisions: what it was asked to run, and what had its record before.
        tally: how many runs ended with which status, those done before not counted.
        interrupted: whether somebody stopped it.
        leaderboard: the file.
    """

    decisions: Sequence[Decision]
    tally: Counter[str]
    interrupted: bool
    leaderboard: Path

    @property
    def failed(self) -> bool:
        """Whether a run of the plan has failed, now or before."""
        left = {decision.status for decision in self.decisions if not decision.due}
        return any(name in left or self.tally[name] for name in FAILURES)


def carry_out(options: RunOptions, console: Console | None = None, say: Say = silent) -> Session:
    """Run what is due of a sweep and write the leaderboard, also of what is there after a Ctrl-C.

    Args:
        options: from `resolve_run`.
        console: shows the progress; None: the terminal.
        say: takes what the plan says before it is made, see `plan_all`.

    Raises:
        BenchError: anything the user has to mend first, or a record that cannot be written.
    """
    prepare(options.folder)
    plugins.load(options.plugin)
    start_method(*_preloads(options))  # it imports torch while we plan
    for device in options.device:
        check_device(device)
    runs = plan_all(options.suites, options.tasks, say)
    store = Store(options.folder)
    with lock(options.folder):
        decisions = decide(runs, store, options.overwrite)
        relabel(decisions, store)
        tally, interrupted = _run(options, decisions, store, console or Console())
        return Session(decisions, tally, interrupted, write_leaderboard(options.folder))


def _preloads(options: RunOptions) -> list[str]:
    """Modules that the runs' processes need beside the worker's own."""
    known = registry.tasks()  # the plan refuses a task that is not among them
    classes = [known[suite.task] for suite in options.suites if suite.task in known]
    return list(dict.fromkeys(name for cls in classes for name in cls.preload))


def _run(
    options: RunOptions, decisions: Sequence[Decision], store: Store, console: Console
) -> tuple[Counter[str], bool]:
    """Run what is due; return how the runs ended, and whether somebody stopped them."""
    due = sum(decision.due for decision in decisions)
    with hold_interrupts() as interrupt, make_display(console, due) as display:
        sweep = Sweep(decisions, store, options, display)
        try:
            sweep.run(interrupt)
        except KeyboardInterrupt:
            return sweep.tally, True
    return sweep.tally, False

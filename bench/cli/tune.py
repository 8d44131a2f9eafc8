"""`bench tune`: search a method's settings on calibration images, and write a suite with the best."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_ptq_bench.bench.cli.options import add_options, add_task_options
from vit_ptq_bench.bench.cli.run import INTERRUPTED, say
from vit_ptq_bench.bench.cli.text import print_rows
from vit_ptq_bench.bench.planning.options import (
    comma_list,
    flag,
    options_of,
    resolved,
    words_source,
)
from vit_ptq_bench.bench.planning.tune_options import TuneOptions
from vit_ptq_bench.tasks import TaskOptions

if TYPE_CHECKING:
    from rich.status import Status

    from vit_ptq_bench.bench.tuning.session import Plan, Tuned
    from vit_ptq_bench.bench.tuning.trials import Trial

DESCRIPTION = """\
Try settings of a method: its choices and switches, the number of calibration images, its authors' bit table
or the common one, symmetric grids, one scale a weight, scales that hardware shifts, bits that are shared out;
or try several methods. Calibration images that are held out judge, never evaluation images. After eight
trials a regression proposes the next. A search that was stopped goes on with the same command."""


def add(verbs: Any) -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser(
        "tune",
        help="search a method's settings on calibration images",
        description=DESCRIPTION,
    )
    parser.set_defaults(function=run)
    parser.add_argument(
        "method",
        metavar="METHOD",
        type=comma_list,
        help="a method of `bench list methods`, or several: minmax,percentile,omse",
    )
    parser.add_argument("task", metavar="TASK", help="a task of `bench list tasks`")
    parser.add_argument("model", metavar="MODEL", help="a model of the task")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be searched; try nothing"
    )
    add_options(parser.add_argument_group("the search"), TuneOptions)
    add_task_options(parser, leave_out="limit")


def run(arguments: argparse.Namespace) -> int:
    """Search, print what was found, and return the exit status."""
    options = resolved(TuneOptions, [words_source(vars(arguments))])
    from vit_ptq_bench.bench.execution.interrupt import raise_interrupts

    with raise_interrupts():
        from vit_ptq_bench.bench.tuning.session import carried_out, planned

        words = vars(arguments)
        plan = planned(arguments.method, arguments.task, arguments.model, options, words)
        _print_space(plan)
        if arguments.dry_run:
            return 0
        progress = _Progress(plan)
        try:
            with progress.status:
                tuned = carried_out(plan, progress)
        except KeyboardInterrupt:
            say(
                f"interrupted: {progress.done} trials are kept in {plan.folder}, and the same command "
                "goes on from here"
            )
            return INTERRUPTED
        _print_found(plan, tuned, arguments)
    return 0


def _print_space(plan: Plan) -> None:
    from vit_ptq_bench.bench.tuning.space import value_word

    rows = [
        (one.name, ", ".join(value_word(value) for value in one.values))
        for one in plan.space.dimensions
    ]
    print_rows(("what", "values"), rows)
    say(
        f"{plan.space.size} configurations, {plan.count} trials, judged by {plan.objective.name} on "
        f"{plan.options.held_out} calibration images held out"
    )


class _Progress:
    """Says each trial, and which one is under way.

    Attributes:
        done: trials that there are.
        status: on a terminal, the trial under way.
    """

    def __init__(self, plan: Plan) -> None:
        from rich.console import Console

        self.done = 0
        self.status: Status = Console().status("loading")
        self._plan = plan
        self._began = False

    def __call__(self, trials: Sequence[Trial]) -> None:
        """Print the last of the trials; at first, how many there are."""
        self.done = len(trials)
        if self._began:
            self._say(trials)
        elif trials:
            say(f"{self.done} trials are there from before")
        self._began = True
        self.status.update(f"trial {self.done + 1} of {self._plan.count}")

    def _say(self, trials: Sequence[Trial]) -> None:
        from vit_ptq_bench.bench.tuning.search import best

        last, objective = trials[-1], self._plan.objective
        value = "refused" if last.value is None else objective.shown(last.value)
        found = best(trials, objective)
        mark = " *" if found is last else ""
        place = f"[{self.done}/{self._plan.count}]"
        told = f": {last.message}" if last.message else ""
        say(f"{place} {value}{mark} ({last.seconds:.1f} s) {last.configuration.words}{told}")


def _print_found(plan: Plan, tuned: Tuned, arguments: argparse.Namespace) -> None:
    objective = plan.objective
    best, default = tuned.best, tuned.default
    say(f"best: {objective.shown(best.value or 0.0)} with {best.configuration.words}")
    if default.value is not None:
        say(f"as it is: {objective.shown(default.value)} with {default.configuration.words}")
    say(f"suite: {tuned.suite}; run it with")
    say(f"    bench run {shlex.join([str(tuned.suite), *_given(arguments)])}")


def _given(arguments: argparse.Namespace) -> list[str]:
    """The words about data, weights, plug-ins and device that the run needs too."""
    words: list[str] = []
    names = [name for name, *_ in options_of(TaskOptions) if name != "limit"]
    for name in (*names, "config", "plugin", "device"):
        value = getattr(arguments, name)
        if isinstance(value, bool):
            words.append(flag(name) if value else flag(f"no_{name}"))
        elif value is not None:
            several = value if isinstance(value, list) else [value]
            words += [word for one in several for word in (flag(name), str(one))]
    return words

"""Trials: one fault each, what came of it, and the process in which many of them run."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vit_ptq_bench.errors import UserError

GOOD = ("refused", "right", "unknowable")
"""``unknowable``: other figures in a record of an old layout, which nothing in it can tell."""

BAD = ("lost", "doubled", "silent", "traceback", "hung")
"""``hung`` is also what a fault leaves behind: processes, temporary files, memory without bound."""

TITLES = {
    "refused": "refused in a sentence",
    "right": "figures as they were",
    "unknowable": "not to be known",
    "lost": "lost",
    "doubled": "doubled",
    "silent": "wrong and silent",
    "traceback": "tracebacks",
    "hung": "hung or left behind",
}

SECONDS = 60.0
"""How long one trial may take on a busy machine."""

GROWTH = 4 << 30
"""Bytes of address space that the trials of one kind may take beyond what they begin with."""


@dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    Attributes:
        verdict: one of `GOOD` or `BAD`.
        text: the fault, and what was seen.
    """

    verdict: str
    text: str = ""


@dataclass
class Row:
    """The outcomes of one kind of fault.

    Attributes:
        kind: its name.
        counts: outcomes by verdict.
        seconds: wall time.
        bad: number and outcome of each trial that is not good.
    """

    kind: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*GOOD, *BAD), 0))
    seconds: float = 0.0
    bad: list[tuple[int, Outcome]] = field(default_factory=list)

    @property
    def trials(self) -> int:
        return sum(self.counts.values())

    def add(self, number: int, outcome: Outcome) -> None:
        self.counts[outcome.verdict] += 1
        if outcome.verdict in BAD:
            self.bad.append((number, outcome))


Trial = Callable[[Any, int, random.Random], Outcome]
"""Causes and judges the fault of that number; all chance comes from the generator."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: for ``--only`` and the table.
        what: the fault in words.
        trials: how many a full run makes; None: all that there are, see ``numbers``.
        prepare: makes in an empty folder what the trials share.
        trial: one trial.
        numbers: of all trials there are, where they can be counted.
        run: instead of the four above, where trials have processes of their own: makes that many of a seed
            in a folder.
    """

    name: str
    what: str
    trials: int | None
    prepare: Callable[[Path], Any] = Path
    trial: Trial | None = None
    numbers: Callable[[Any], Sequence[int]] | None = None
    run: Callable[[Path, int, int], Row] | None = None

    def chosen(self, context: Any, scale: float, seed: int) -> list[int]:
        """The trials of a run at ``scale``, evenly spread where all are counted."""
        if self.numbers is None:
            return list(range(max(1, round((self.trials or 0) * scale))))
        there = list(self.numbers(context))
        count = max(1, round((self.trials or len(there)) * scale))
        if count >= len(there):
            return there
        return sorted(random.Random(f"{seed}/{self.name}").sample(there, count))


def run_kind(kind: Kind, folder: Path, scale: float, seed: int, only: int | None = None) -> Row:
    """Run the trials of one kind in processes forked from this one; a dead or silent one costs a trial."""
    if kind.run is not None:
        return kind.run(folder, max(1, round((kind.trials or 0) * scale)), seed)
    row, began = Row(kind.name), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with chdir(folder):
        context = kind.prepare(folder)
        waiting = [only] if only is not None else kind.chosen(context, scale, seed)
        while waiting:
            waiting = waiting[_run_some(kind, context, waiting, seed, row) :]
    row.seconds = time.monotonic() - began
    return row


def _run_some(kind: Kind, context: Any, numbers: list[int], seed: int, row: Row) -> int:
    """Run trials until the process ends; return how many are judged."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_serve, args=(kind, context, numbers, seed, theirs))
    sys.stdout.flush()
    process.start()
    theirs.close()
    done = 0
    while done < len(numbers):
        try:
            if not ours.poll(SECONDS):
                row.add(numbers[done], Outcome("hung", f"no end within {SECONDS:.0f} s"))
                done += 1
                break
            row.add(numbers[done], ours.recv())
        except EOFError:
            process.join()
            row.add(numbers[done], Outcome("traceback", f"the process {_death(process.exitcode)}"))
            done += 1
            break
        done += 1
    process.kill()
    process.join()
    return done


def _death(code: int | None) -> str:
    return f"died of {signal.Signals(-code).name}" if code and code < 0 else f"exited with {code}"


def _serve(kind: Kind, context: Any, numbers: list[int], seed: int, connection: Connection) -> None:
    _bound_memory()
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 2)  # libraries in C warn there
    for number in numbers:
        rng = random.Random(f"{seed}/{kind.name}/{number}")
        connection.send(judged(lambda n=number, r=rng: kind.trial(context, n, r)))


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def judged(trial: Callable[[], Outcome]) -> Outcome:
    """The outcome of a trial; a sentence for users is a refusal, anything else it raises a traceback."""
    try:
        return trial()
    except UserError as error:
        return Outcome("refused", str(error))
    except (Exception, SystemExit) as error:
        return Outcome("traceback", f"{fault_of(error)}{_brief(error)}")


def fault_of(error: BaseException) -> str:
    """What a trial has noted of its fault (`faulty`) before something was raised."""
    notes = getattr(error, "__notes__", ())
    return "".join(f"{note}: " for note in notes)


@contextmanager
def faulty(fault: str) -> Iterator[None]:
    """Note the fault in whatever is raised in the block."""
    try:
        yield
    except BaseException as error:
        error.add_note(fault)
        raise


def _brief(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "tests/faults" not in frame.filename] or frames
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in own[:-4:-1])
    return f"{type(error).__name__}: {str(error)[:200]} ({places})"


def table(rows: Sequence[Row]) -> str:
    """The rows as a markdown table."""
    head = ["faults", "trials", *TITLES.values(), "minutes"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in rows:
        numbers = [row.trials, *(row.counts[name] for name in TITLES)]
        lines.append([row.kind, *(f"{n:,}" for n in numbers), f"{row.seconds / 60:.1f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

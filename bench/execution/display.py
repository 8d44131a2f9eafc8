"""The view of a sweep for the person at the terminal: a live display, or one line per event."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from vit_ptq_bench.bench.execution.forecast import duration
from vit_ptq_bench.bench.execution.messages import PhaseProgress
from vit_ptq_bench.bench.planning.plan import Run

WIDE = 110
"""Columns of a terminal from which on bars are long."""

WIDE_BAR, NARROW_BAR = 24, 10

COLOURS = {"ok": "green", "skipped": "yellow"}


class Display:
    """Plain log lines: one when a run starts, one when it ends."""

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self.total = total
        self.done = 0
        self._waited_for = ""
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def started(self, slot: int, run: Run) -> None:
        """``run`` has begun on a slot."""
        self._print(f"start {escape(run.label)}")

    def step(self, slot: int, run: Run, step: PhaseProgress) -> None:
        """``run`` reports progress."""

    def finished(
        self, slot: int | None, run: Run, status: str, seconds: float, message: str
    ) -> None:
        """``run`` has ended; ``slot`` is None for one that was never started."""
        self.done += 1
        colour = COLOURS.get(status, "red")
        text = f"[{self.done}/{self.total}] [{colour}]{status}[/] {escape(run.label)}"
        if slot is not None:
            text += f" ({duration(seconds)})"
        self._print(text + (f": {escape(_one_line(message))}" if message else ""))

    def again(self, slot: int, run: Run, message: str) -> None:
        """``run`` has ended on a slot, and is tried once more."""
        self._print(f"[yellow]once more[/] {escape(run.label)}: {escape(_one_line(message))}")

    def waiting(self, places: Sequence[object]) -> None:
        """Nothing can start until runs of other sweeps end, at ``places``."""
        told = ", ".join(sorted({str(place) for place in places}))
        if told and told != self._waited_for:
            self._print(f"waiting for runs of {escape(told)}")
        self._waited_for = told

    def tick(self, remaining: float | None) -> None:
        """Some time has passed; ``remaining`` is the expected rest in seconds."""

    def _print(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False)

    @property
    def elapsed(self) -> float:
        """Seconds since the sweep began."""
        return time.monotonic() - self._began


class LogDisplay(Display):
    """Log lines with the expected rest after each finished run."""

    _remaining: float | None = None
    _reported = 0

    def tick(self, remaining: float | None) -> None:
        """Print the elapsed and expected time once per finished run."""
        if self.done == self._reported:
            return
        self._reported = self.done
        if self.done < self.total:
            self._print(
                f"[{self.done}/{self.total}] {duration(self.elapsed)} elapsed, "
                f"about {duration(remaining)} left"
            )


class LiveDisplay(Display):
    """A bar for the sweep and one for each run under way, above them the finished runs."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, total)
        self._progress = Progress(
            # Names go on in the next line, where a column of the usual kind would cut them.
            TextColumn("{task.description}", table_column=Column(overflow="fold")),
            BarColumn(bar_width=WIDE_BAR if console.width >= WIDE else NARROW_BAR),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._overall = self._progress.add_task("all runs", total=total, note="")
        self._slots: dict[int, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def started(self, slot: int, run: Run) -> None:
        """Show a bar for the run."""
        self._slots[slot] = self._progress.add_task(escape(run.label), total=None, note="start")

    def step(self, slot: int, run: Run, step: PhaseProgress) -> None:
        """Move the run's bar; each phase fills it once."""
        note = f"{step.phase} {step.done}/{step.total}" if step.total else step.phase
        self._progress.update(
            self._slots[slot], total=step.total or None, completed=step.done, note=note
        )

    def finished(
        self, slot: int | None, run: Run, status: str, seconds: float, message: str
    ) -> None:
        """Take the run's bar away and print how it ended."""
        if slot is not None:
            self._progress.remove_task(self._slots.pop(slot))
        super().finished(slot, run, status, seconds, message)
        self._progress.update(self._overall, completed=self.done)

    def again(self, slot: int, run: Run, message: str) -> None:
        """Take the run's bar away and print why it ended."""
        self._progress.remove_task(self._slots.pop(slot))
        super().again(slot, run, message)

    def tick(self, remaining: float | None) -> None:
        """Update elapsed and expected time."""
        note = (
            f"{self.done}/{self.total}  {duration(self.elapsed)} elapsed, "
            f"about {duration(remaining)} left"
        )
        self._progress.update(self._overall, note=note)


def make_display(console: Console, total: int) -> Display:
    """The live display on a terminal, log lines elsewhere."""
    return LiveDisplay(console, total) if console.is_terminal else LogDisplay(console, total)


def _one_line(message: str, limit: int = 300) -> str:
    text = " ".join(message.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."

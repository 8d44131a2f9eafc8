"""A sweep among others in its folder: which runs it may start, what the others made, what it tells them."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.execution import leftovers
from vit_ptq_bench.bench.execution.devices import slots_of
from vit_ptq_bench.bench.planning.overwrite import Decision
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.planning.settings import RunOptions
from vit_ptq_bench.bench.records.files import cannot_write
from vit_ptq_bench.bench.records.record import Record, now
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.sharing.claims import Claim, Claims
from vit_ptq_bench.bench.sharing.events import EventLog
from vit_ptq_bench.bench.sharing.presence import (
    Presence,
    Running,
    SweepReport,
    forget_old,
    present,
)

LOOK_SECONDS = 2.0
"""Between two looks at what others work on."""

TELL_SECONDS = 5.0
"""Between two reports of this sweep's state."""


class Company:
    """The other sweeps in a folder, and what this one tells them.

    Args:
        decisions: the plan.
        store: the records.
        options: of this sweep.

    Attributes:
        name: of this sweep.
        elsewhere: how runs of the plan ended that other sweeps have made since the start, by their ids.
    """

    def __init__(self, decisions: Sequence[Decision], store: Store, options: RunOptions) -> None:
        self.elsewhere: dict[str, str] = {}
        self._store, self._folder = store, options.folder
        self._dead_after = options.dead_after
        self._workers = len(slots_of(options))
        self._known = {d.run.run_id: _mark(d.record) for d in decisions}
        self._before = sum(not decision.due for decision in decisions)
        self._claims = Claims(self._folder, options.dead_after)
        self._presence = Presence(self._folder)
        self._events = EventLog(self._folder, self._presence.name)
        self._held: dict[str, Claim] = {}
        self._looked = self._told = -float("inf")
        self._began = now()
        self._state = "running"
        self._ended: Counter[str] = Counter()
        self.name = self._presence.name

    @contextmanager
    def present(self) -> Iterator[None]:
        """Be at work in the folder while the block lasts.

        Raises:
            BenchError: it cannot be written.
        """
        self.tell((), None, at_once=True)
        self._note("sweep started", runs=len(self._known), had_record=self._before)
        self._clean()
        try:
            with self._claims.kept_alive(self._presence.path):
                yield
        except BaseException:
            with suppress(BenchError):  # what ended the sweep is told
                self._leave("interrupted")
            raise
        self._leave("ended")

    def _leave(self, state: str) -> None:
        self._state = state
        self.tell((), None, at_once=True)
        self._note(f"sweep {state}", **self._ended)
        self._clean()

    def take(self, run: Run, facts: Mapping[str, Any]) -> bool:
        """Whether this sweep may start ``run``: nobody else is at it, and nobody has made it meanwhile.

        Raises:
            BenchError: the folder cannot be written.
        """
        if run.run_id in self._held:
            return False
        with self._writing():
            if not self._claims.take(run.run_id, facts):
                self._look()
                return False
        if self.made(run) is not None:
            self._claims.release(run.run_id)
            return False
        return True

    def made(self, run: Run) -> Record | None:
        """Return the record of ``run`` if another sweep has made it since this one began."""
        record = self._store.read(run)
        if record is None or _mark(record) == self._known.get(run.run_id):
            return None
        return record

    def before(self, run: Run) -> tuple[str | None, str | None, str] | None:
        """What tells the record that ``run`` had when the sweep began; None without one."""
        return self._known.get(run.run_id)

    def claim(self, run: Run) -> bytes:
        """What a process needs to keep the claim of ``run`` itself."""
        return self._claims.content(run.run_id)

    def look(self) -> bool:
        """Look around, unless that has just been done; whether it was."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return False
        self._look()
        return True

    @property
    def held(self) -> Mapping[str, Claim]:
        """Claims of others at the last look."""
        return self._held

    def started(self, run: Run, device: str) -> None:
        """Tell that ``run`` has begun."""
        self._note("run started", run=run.run_id, label=run.label, device=device)

    def left(self, run: Run) -> None:
        """Give up ``run``, which is to be tried again, by whoever comes."""
        self._claims.release(run.run_id)

    def ended(self, run: Run, status: str, seconds: float, message: str) -> None:
        """Tell that ``run`` has ended, its record being written."""
        self._ended[status] += 1
        facts: dict[str, Any] = {"run": run.run_id, "label": run.label, "status": status}
        record = self._store.read(run)
        if record is not None and record.ok:
            facts["metrics"] = record.metrics
        self._note("run ended", **facts, seconds=round(seconds, 3), message=message)
        self._claims.release(run.run_id)

    def made_elsewhere(self, run: Run, record: Record) -> None:
        """Note what another sweep has made."""
        self.elsewhere[run.run_id] = record.status
        self._note("run made elsewhere", run=run.run_id, label=run.label, status=record.status)

    def tell(self, running: Sequence[Running], left: float | None, at_once: bool = False) -> None:
        """Write this sweep's report, unless that has just been done.

        Raises:
            BenchError: the folder cannot be written.
        """
        if not at_once and time.monotonic() - self._told < TELL_SECONDS:
            return
        self._told = time.monotonic()
        report = SweepReport(
            began=self._began,
            command=sys.argv[1:],
            state=self._state,
            runs=list(self._known),
            before=self._before,
            ended=dict(self._ended),
            elsewhere=len(self.elsewhere),
            running=running,
            left_seconds=left,
            workers=self._workers,
        )
        with self._writing():
            self._presence.tell(report)

    def _note(self, event: str, **facts: Any) -> None:
        with self._writing():
            self._events.note(event, **facts)

    def _look(self) -> None:
        with self._writing():
            self._held = self._claims.others()
        self._looked = time.monotonic()

    def _clean(self) -> None:
        """Remove what sweeps that are not at work any more have left."""
        with self._writing():
            at = self._claims.now()
            there = present(self._folder, at)
            names = {item.name for item in there if item.is_at_work(self._dead_after)}
            self._claims.forget_dead()
            leftovers.remove(self._folder, names, self._claims.others())
            forget_old(self._folder, at, self._dead_after)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self._folder, error.strerror or str(error)) from error


def _mark(record: Record | None) -> tuple[str | None, str | None, str] | None:
    """What tells a record from another one of the same run."""
    return None if record is None else (record.started, record.finished, record.status)

"""Works through a plan: what runs next, what waits, what a failed reference makes pointless."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.execution import leftovers, scratch
from vit_ptq_bench.bench.execution.company import Company
from vit_ptq_bench.bench.execution.devices import Slot, slots_of
from vit_ptq_bench.bench.execution.display import Display
from vit_ptq_bench.bench.execution.executors import Submitted, make_executor
from vit_ptq_bench.bench.execution.forecast import Forecast
from vit_ptq_bench.bench.execution.interrupt import Interrupt
from vit_ptq_bench.bench.execution.limits import Limits
from vit_ptq_bench.bench.execution.logs import log_file
from vit_ptq_bench.bench.execution.messages import (
    LOST,
    NO_START,
    CannotWrite,
    Died,
    Finished,
    Job,
    PhaseProgress,
)
from vit_ptq_bench.bench.execution.room import Room
from vit_ptq_bench.bench.execution.source import source_state
from vit_ptq_bench.bench.planning import registry
from vit_ptq_bench.bench.planning.overwrite import Decision
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.planning.settings import RunOptions
from vit_ptq_bench.bench.records.files import cannot_write
from vit_ptq_bench.bench.records.record import Record, new_record, now
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.sharing.presence import Running

POLL_SECONDS = 0.25


class Sweep:
    """Carries out the runs of a plan that are due.

    Attributes:
        ended: the runs that have ended here and how, those done before left out; by their ids.
        company: the other sweeps in the folder.
    """

    def __init__(
        self, decisions: Sequence[Decision], store: Store, options: RunOptions, display: Display
    ) -> None:
        self.ended: dict[str, str] = {}
        self.company = Company(decisions, store, options)
        self._store = store
        self._options = options
        self._folder = options.folder
        self._slots = slots_of(options)
        self._measured = options.executor == "local"  # elsewhere a scheduler knows its memory
        self._source = source_state()
        self._display = display
        self._executor = make_executor(options, self.company.name, self._handle)
        self._limits = Limits(options.timeout)
        self._tried_again: set[str] = set()
        self._pending = [decision.run for decision in decisions if decision.due]
        self._blocked = _blocked_by(decisions)
        self._waiting_for = {run.run_id for run in self._pending if run.reference is None}
        self._phases: dict[str, str] = {}
        self._forecast = Forecast()
        self._room = Room()
        self._learn(decisions)

    def run(self, interrupt: Interrupt) -> None:
        """Run everything that is due.

        Args:
            interrupt: asked between any two steps.

        Raises:
            BenchError: a record cannot be written (disk full); finished records stay.
            KeyboardInterrupt: handed on after the running processes are killed.
        """
        with self.company.present():
            try:
                while self._pending or self._executor.active:
                    self._turn(interrupt)
            finally:
                self._executor.cancel()

    def _turn(self, interrupt: Interrupt) -> None:
        self._skip_blocked()
        self._fill_slots()
        for active, message in self._executor.poll(POLL_SECONDS):
            if isinstance(message, Died):
                interrupt.check()  # what stops the sweep may have ended the process too
            self._handle(active, message)
        remaining = self._remaining()
        self._display.tick(remaining)
        self.company.tell(self._running(), remaining)
        interrupt.check()

    def _fill_slots(self) -> None:
        busy = {active.slot for active in self._executor.active}
        full: set[str] = set()  # what finds no place on a device finds one in none of its slots
        for slot in self._slots:
            if slot in busy or slot.device in full:
                continue
            ready = self._next(slot)
            if ready is None:
                full.add(slot.device)
                continue
            self._pending.remove(ready)
            job = self._job(ready, slot)
            self._executor.submit(job, slot, self._limits.of(ready, job.device, job.threads))
            self._display.started(slot.index, ready)
            self.company.started(ready, job.device)

    def _next(self, slot: Slot) -> Run | None:
        """The next run that nobody else works on, claimed; what others have made meanwhile is noted."""
        self.company.look()
        under_way = self._executor.active if self._measured else ()
        beside = [one.job.run for one in under_way if one.job.device == slot.device]
        for run in list(self._pending):
            if run.reference in self._waiting_for or run.reference in self._blocked:
                continue
            if not self._room.fits(run, slot.device, beside):
                continue
            if self.company.take(run, {"label": run.label, "device": slot.device}):
                return run
            if (record := self.company.made(run)) is not None:
                self._made_elsewhere(run, record)
        if not self._executor.active:
            self._display.waiting([claim.place for claim in self.company.held.values()])
        return None

    def _made_elsewhere(self, run: Run, record: Record) -> None:
        self._pending.remove(run)
        self.company.made_elsewhere(run, record)
        self._display.finished(None, run, record.status, 0.0, "made by another sweep")
        if run.reference is None:
            message = str((record.error or {}).get("message", ""))
            self._settle_reference(run, record.status, message)

    def _running(self) -> list[Running]:
        return [
            Running(
                active.job.run.run_id,
                active.job.run.label,
                active.job.device,
                self._phases.get(active.job.run.run_id, ""),
                round(active.seconds, 1),
            )
            for active in self._executor.active
        ]

    def _job(self, run: Run, slot: Slot) -> Job:
        options, folder = self._options, self._folder
        task = run.spec.task.name
        model_file = self._store.model_path(run)
        shared = leftovers.cache_of(folder, self.company.name)
        alike = options.executor != "slurm"  # nodes have no disk in common that is fast
        cache = (shared, options.cache_bytes) if options.cache_bytes and alike else None
        return Job(
            run=run,
            task_options=options.tasks[task],
            output=folder,
            device=slot.device,
            threads=1 if registry.is_small(task) else slot.threads,
            plugins=tuple(path.resolve() for path in options.plugin),
            model_file=model_file if options.save_models else None,
            log_file=log_file(folder, run.run_id),
            source=self._source,
            scratch=scratch.own_folder() / str(slot.index),
            cache=cache,
            before=self.company.before(run),
            claim=self.company.claim(run),
            dead_after=options.dead_after,
            deterministic=options.deterministic,
        )

    def _handle(self, active: Submitted, message: object) -> None:
        run = active.job.run
        if isinstance(message, PhaseProgress):
            self._phases[run.run_id] = message.phase
            self._display.step(active.slot.index, run, message)
        elif isinstance(message, CannotWrite):
            raise cannot_write(self._folder, message.reason)
        elif isinstance(message, (Finished, Died)):
            self._finish(active, message)

    def _finish(self, active: Submitted, message: Finished | Died) -> None:
        run, job = active.job.run, active.job
        if isinstance(message, Died) and self._gets_another_try(run, message):
            self._tried_again.add(run.run_id)
            self._pending.insert(0, run)
            self.company.left(run)
            self._display.again(active.slot.index, run, message.message)
            return
        if isinstance(message, Died):
            self._write(run, message.status, message.kind, message.message, job.log_file)
        self._drop_empty_log(job.log_file)
        if message.status == "ok":
            self._forecast.learn(run, active.seconds)
            self._limits.learn(run, job.device, job.threads, active.seconds)
            if (record := self._store.read(run)) is not None:
                self._room.learn(run, record)
        self.ended[run.run_id] = message.status
        self._phases.pop(run.run_id, None)
        self.company.ended(run, message.status, active.seconds, message.message)
        self._display.finished(
            active.slot.index, run, message.status, active.seconds, message.message
        )
        if run.reference is None:
            self._settle_reference(run, message.status, message.message)

    def _gets_another_try(self, run: Run, death: Died) -> bool:
        """Whether a run is tried once more: it was never begun, or all runs of its model hang on it."""
        if run.run_id in self._tried_again:
            return False
        killed_reference = run.reference is None and death.status != "timeout"
        return death.kind in (NO_START, LOST) or killed_reference

    def _settle_reference(self, run: Run, status: str, message: str) -> None:
        self._waiting_for.discard(run.run_id)
        if status != "ok":
            self._blocked[run.run_id] = blocked_reason(run, status, message)

    def _skip_blocked(self) -> None:
        for run in [run for run in self._pending if run.reference in self._blocked]:
            assert run.reference is not None
            reason = self._blocked[run.reference]
            self._pending.remove(run)
            self._write(run, "skipped", "full-precision gate", reason)
            self.ended[run.run_id] = "skipped"
            self.company.ended(run, "skipped", 0.0, reason)
            self._display.finished(None, run, "skipped", 0.0, reason)

    def _write(
        self, run: Run, status: str, kind: str, message: str, log: Path | None = None
    ) -> None:
        """Write the record of a run that has no process (any more) to write it."""
        error: dict[str, Any] = {"type": kind, "message": message}
        if log is not None and (printed := tail(log)):
            error["traceback"] = printed
        record = new_record(
            run.spec,
            status=status,
            fidelity=run.fidelity,
            family=run.family,
            error=error,
            variant=run.variant,
            started=now(),
            finished=now(),
        )
        try:
            self._store.write(record)
        except OSError as problem:
            reason = problem.strerror or str(problem)
            raise cannot_write(self._folder, reason) from problem

    def _learn(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            record = decision.record
            if record is None or decision.status != "ok":
                continue
            self._limits.learn_record(decision.run, record.seconds, record.environment)
            self._room.learn(decision.run, record)
            if (seconds := record.seconds.get("total")) is not None:
                self._forecast.learn(decision.run, seconds)

    def _drop_empty_log(self, path: Path) -> None:
        try:
            if path.is_file() and path.stat().st_size == 0:
                path.unlink()
        except OSError:
            pass

    def _remaining(self) -> float | None:
        active = [(active.job.run, active.seconds) for active in self._executor.active]
        return self._forecast.remaining(self._pending, active, len(self._slots))


def _blocked_by(decisions: Sequence[Decision]) -> dict[str, str]:
    """Full-precision runs that stay as they are and are not ok: run id -> why others cannot run."""
    blocked = {}
    for decision in decisions:
        run = decision.run
        if run.reference is not None or decision.due or decision.status == "ok":
            continue
        error = decision.record.error if decision.record is not None else None
        message = (error or {}).get("message", "")
        blocked[run.run_id] = blocked_reason(run, decision.status or "missing", message)
    return blocked


def blocked_reason(reference: Run, status: str, message: str) -> str:
    """Why the runs of a model do not run when its full-precision run is not ok."""
    return f"the full-precision run of {reference.spec.model.name} is {status}: {message}"


def tail(path: Path, lines: int = 40) -> list[str]:
    """The last lines of a text file; none if it cannot be read, or is no file."""
    try:
        if not path.is_file():
            return []
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except OSError:
        return []

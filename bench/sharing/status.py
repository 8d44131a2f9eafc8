"""How far the sweeps of a folder are, from what they and their records say there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.sharing.claims import CLAIMS, SHARED, Claim, read_claim, server_time
from vit_ptq_bench.bench.sharing.presence import Present, Running, present


@dataclass(frozen=True)
class Status:
    """The state of a folder.

    Attributes:
        planned: runs of all sweeps that are known there; 0 where none is.
        statuses: of their records, how many have which status.
        running: claims of runs under way.
        phases: what their sweeps say of them, by run.
        failed: records of runs that have failed.
        sweeps: all that are known, the latest begun first.
        at_work: names of those that go on.
        left: planned runs that have no record and are not under way.
        left_seconds: expected; None: not known, or nobody is at work.
        findings: records that are damaged, or disagree.
    """

    planned: int
    statuses: Counter[str]
    running: Sequence[Claim]
    phases: dict[str, Running]
    failed: Sequence[Record]
    sweeps: Sequence[Present]
    at_work: frozenset[str]
    left: int
    left_seconds: float | None
    findings: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        return {
            "planned": self.planned,
            "records": dict(sorted(self.statuses.items())),
            "left": self.left,
            "left_seconds": self.left_seconds,
            "running": [self._described(claim) for claim in self.running],
            "failed": [
                {"run": record.run_id, "status": record.status, "error": record.error}
                for record in self.failed
            ],
            "sweeps": [
                {
                    "name": sweep.name,
                    "host": sweep.place.host,
                    "pid": sweep.place.pid,
                    "at_work": sweep.name in self.at_work,
                    "state": sweep.report.state,
                    "began": sweep.report.began,
                    "command": list(sweep.report.command),
                    "silent_seconds": round(sweep.age, 1),
                }
                for sweep in self.sweeps
            ],
            "findings": list(self.findings),
        }

    def _described(self, claim: Claim) -> dict[str, Any]:
        told = self.phases.get(claim.run_id)
        return {
            "run": claim.run_id,
            "label": str(claim.facts.get("label", "")),
            "host": claim.place.host,
            "pid": claim.place.pid,
            "device": str(claim.facts.get("device", "")),
            "phase": told.phase if told else None,
            "seconds": told.seconds if told else None,
            "silent_seconds": round(claim.age, 1),
        }


FAILED = ("failed", "oom", "timeout")


def status_of(folder: Path, dead_after: float) -> Status:
    """Return how far the sweeps of a folder are; nothing there is changed but for a file made and removed.

    Args:
        folder: of the records.
        dead_after: seconds of silence after which a process counts as dead.
    """
    now = _time_of(folder)
    sweeps = present(folder, now)
    at_work = [sweep for sweep in sweeps if sweep.is_at_work(dead_after)]
    planned = {run for sweep in sweeps for run in sweep.report.runs}
    store = Store(folder)
    records = [record for record in store.records() if not planned or record.run_id in planned]
    claims = [read_claim(path, now) for path in sorted((folder / SHARED / CLAIMS).glob("*.json"))]
    running = [claim for claim in claims if claim is not None and not claim.is_dead(dead_after)]
    done = {record.run_id for record in records} | {claim.run_id for claim in running}
    findings = [reason for _, reason in store.damaged]
    findings += [f"{path}: disagrees with its run's record" for path in store.conflicts()]
    return Status(
        planned=len(planned),
        statuses=Counter(record.status for record in records),
        running=running,
        phases={one.run_id: one for sweep in at_work for one in sweep.report.running},
        failed=[record for record in records if record.status in FAILED],
        sweeps=sweeps,
        at_work=frozenset(sweep.name for sweep in at_work),
        left=len(planned - done),
        left_seconds=_left_seconds(at_work),
        findings=findings,
    )


def _left_seconds(at_work: Sequence[Present]) -> float | None:
    """Of sweeps that share their runs: the work that is left is done by all together."""
    work = []
    for sweep in at_work:
        if sweep.report.left_seconds is None:
            return None
        work.append(sweep.report.left_seconds * sweep.report.workers)
    workers = sum(sweep.report.workers for sweep in at_work)
    return max(work) / workers if work and workers else None


def _time_of(folder: Path) -> float:
    """The time by the clock of the files there; ours where nothing can be written."""
    try:
        return server_time(folder)
    except OSError:
        return time.time()

"""Reports of sweeps on themselves, for `bench status` on any machine that sees their folder."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.records.files import write_atomically
from vit_ptq_bench.bench.sharing.claims import SHARED
from vit_ptq_bench.bench.sharing.place import Place, here

KEPT = 20
"""Reports of sweeps that have ended which stay in a folder, the latest."""

FORM = 1
"""Version of a report's form; one of another form is not read."""


@dataclass(frozen=True)
class Running:
    """A run under way.

    Attributes:
        run_id, label: the run.
        device: where it computes.
        phase: load, calibrate, save, evaluate; empty before the first.
        seconds: since its start.
    """

    run_id: str
    label: str
    device: str
    phase: str
    seconds: float


@dataclass(frozen=True)
class SweepReport:
    """The state of a sweep when it was last written.

    Attributes:
        began: ISO 8601, UTC.
        command: words of the command line.
        state: ``running``, ``ended`` or ``interrupted``.
        runs: ids of its plan.
        before: how many of them had their record at the start.
        ended: how many have ended since, by status.
        elsewhere: how many others have made since.
        running: what is under way.
        left_seconds: expected seconds to its end; None: not known.
        workers: how many runs it makes at a time.
    """

    began: str
    command: Sequence[str]
    state: str
    runs: Sequence[str]
    before: int
    ended: Mapping[str, int] = field(default_factory=dict)
    elsewhere: int = 0
    running: Sequence[Running] = ()
    left_seconds: float | None = None
    workers: int = 1


@dataclass(frozen=True)
class Present:
    """A report as found in a folder.

    Attributes:
        name: of the sweep, unique.
        place: its process.
        report: what it said last.
        age: seconds since then.
    """

    name: str
    place: Place
    report: SweepReport
    age: float

    def is_at_work(self, dead_after: float) -> bool:
        """Whether the sweep goes on, as far as can be known."""
        alive = self.age <= dead_after and not self.place.has_ended()
        return self.report.state == "running" and alive


class Presence:
    """The report of this process's sweep.

    Attributes:
        name: of the sweep, unique.
        path: the file.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex[:12]
        self.path = folder / SHARED / f"{self.name}.json"
        self._place = here()

    def tell(self, report: SweepReport) -> None:
        """Write ``report`` in the place of the one before.

        Raises:
            OSError: the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)  # anew, if somebody has removed it
        values = {"form": FORM, "place": self._place.write(), "report": asdict(report)}
        write_atomically(self.path, json.dumps(values, indent=1).encode())


def present(folder: Path, now: float) -> list[Present]:
    """Return the reports in a folder, the latest begun first; files that are none are left out.

    Args:
        folder: of the records.
        now: by the clock that the files' times are of.
    """
    found = [_read(path, now) for path in _files(folder)]
    there = [item for item in found if item is not None]
    return sorted(there, key=lambda item: (item.report.began, item.name), reverse=True)


def forget_old(folder: Path, now: float, dead_after: float) -> None:
    """Remove reports of sweeps that have ended or died but for the latest `KEPT`, and their event logs."""
    gone = [item for item in present(folder, now) if not item.is_at_work(dead_after)]
    for item in gone[KEPT:]:
        for path in (folder / SHARED).glob(f"{item.name}.*"):
            path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / SHARED).glob("*.json") if not path.name.startswith(".")]


def _read(path: Path, now: float) -> Present | None:
    try:
        age = now - path.stat().st_mtime
        values = json.loads(path.read_bytes())
        if values["form"] != FORM:
            return None
        return Present(path.stem, Place.read(values["place"]), _report(values["report"]), age)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _report(values: Mapping[str, Any]) -> SweepReport:
    known = dict(values)
    running = [Running(**item) for item in known.pop("running")]
    return SweepReport(**known, running=running)

"""Sends what has ended in a folder, once each, until no sweep is at work there."""

from __future__ import annotations

import time
from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.following.entry import Entry, entry_of
from vit_ptq_bench.bench.following.trackers import Tracker
from vit_ptq_bench.bench.records.files import write_atomically
from vit_ptq_bench.bench.records.store import Store
from vit_ptq_bench.bench.sharing.claims import SHARED
from vit_ptq_bench.bench.sharing.status import Status, status_of
from vit_ptq_bench.guests import one_line

POLL_SECONDS = 5.0


class Sent:
    """What a tracker has got from a folder; kept there, so that another call sends the rest only.

    Args:
        folder: of the records.
        tracker: its name.
        place: where it keeps things; what was sent elsewhere does not count.
        again: forget what was sent.
    """

    def __init__(self, folder: Path, tracker: str, place: str | None, again: bool) -> None:
        self._path = folder / SHARED / "sent" / f"{tracker}.txt"
        self._place = f"to {place or 'its own place'}"
        lines = [] if again or not self._path.is_file() else self._lines()
        self._done = set(lines[1:]) if lines[:1] == [self._place] else set()

    def has(self, entry: Entry) -> bool:
        """Whether this very record was sent."""
        return _line(entry) in self._done

    def note(self, entry: Entry) -> None:
        """Keep that it was sent.

        Raises:
            OSError: the folder cannot be written.
        """
        self._done.add(_line(entry))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, "\n".join([self._place, *sorted(self._done), ""]).encode())

    def _lines(self) -> list[str]:
        return self._path.read_text(encoding="utf-8", errors="replace").splitlines()


def followed(folder: Path, tracker: Tracker, sent: Sent, dead_after: float) -> int:
    """Send each record of a folder as it comes, until no sweep is at work there; return how many.

    Args:
        folder: of the records.
        tracker: takes them.
        sent: what it has.
        dead_after: seconds without a sign of life after which a sweep counts as gone.

    Raises:
        BenchError: the tracker refuses a run.
        OSError: what was sent cannot be noted.
    """
    began, count = time.monotonic(), 0
    while True:
        status = status_of(folder, dead_after)
        count += _send_new(folder, tracker, sent)
        if not status.at_work:
            return count
        tracker.progress(int(time.monotonic() - began), counts_of(status))
        time.sleep(POLL_SECONDS)


def counts_of(status: Status) -> dict[str, float]:
    """Return how far the sweeps are, as figures; seconds where they are known."""
    counts: dict[str, float] = {
        "done": status.statuses["ok"],
        "failed": len(status.failed),
        "running": len(status.running),
        "left": status.left,
    }
    if status.left_seconds is not None:
        counts["left_seconds"] = round(status.left_seconds, 1)
    return counts


def _send_new(folder: Path, tracker: Tracker, sent: Sent) -> int:
    entries = [entry_of(record) for record in Store(folder).records()]
    new = [entry for entry in entries if not sent.has(entry)]
    for entry in sorted(new, key=lambda one: (one.finished, one.run_id)):
        try:
            tracker.send(entry)
        except (
            Exception
        ) as error:  # networks, disks and the programs themselves each fail in their own ways
            raise BenchError(
                f"{tracker.name} did not take run {entry.run_id}: {one_line(error)}; the same command goes on"
            ) from error
        sent.note(entry)
    return len(new)


def _line(entry: Entry) -> str:
    return f"{entry.run_id} {entry.finished}"

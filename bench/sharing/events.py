"""The event log of a sweep: one line of JSON for each thing that happens, to follow it from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.records.record import now
from vit_ptq_bench.bench.sharing.claims import SHARED

SUFFIX = ".events.jsonl"


class EventLog:
    """Appends to ``.sweeps/<sweep>.events.jsonl``; each sweep has its own file, so that lines never mix.

    Args:
        folder: of the records.
        sweep: name of the sweep.
    """

    def __init__(self, folder: Path, sweep: str) -> None:
        self.path = folder / SHARED / f"{sweep}{SUFFIX}"

    def note(self, event: str, **facts: Any) -> None:
        """Append a line with ``event``, the time (ISO 8601, UTC) and ``facts``.

        Raises:
            OSError: the folder cannot be written.
        """
        line = json.dumps({"event": event, "time": now()} | facts)
        self.path.parent.mkdir(parents=True, exist_ok=True)  # anew, if somebody has removed it
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

"""How long a run may take: what the user says, or far more than runs like it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from vit_ptq_bench.bench.execution.forecast import duration
from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.records.spec import canonical_json

FACTOR = 20
"""Times the seconds of the longest run of its kind that a run may take: the machine may be busy."""

LEAST_SECONDS = 3600.0
"""That much every run may take."""

UNKNOWN_SECONDS = 7 * 24 * 3600.0
"""That much a run may take while none of its kind is known."""

START_SECONDS = 900.0
"""How long a process may take to its first word: the fork server imports torch, maybe over a network."""

STOPPED_SECONDS = 60.0
"""How long a process may stay stopped (SIGSTOP)."""


@dataclass(frozen=True)
class Limit:
    """How long one run may take.

    Attributes:
        seconds: infinite for no limit.
        reason: the message of the record of a run that takes longer.
    """

    seconds: float
    reason: str


class Limits:
    """The limits of a sweep's runs.

    Args:
        timeout: what the user says, in seconds; 0: no limit; None: from the runs that are known.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._longest: dict[str, float] = {}

    def learn(self, run: Run, device: str, threads: int, seconds: float) -> None:
        """Note that ``run`` took so many seconds on a device with so many threads."""
        kind = kind_of(run, device, threads)
        self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))

    def learn_record(
        self, run: Run, seconds: Mapping[str, float | None], environment: Mapping[str, Any]
    ) -> None:
        """Note what ``run`` took in an earlier sweep; what it found there counts as if it had computed it."""
        device, threads = environment.get("device"), environment.get("threads")
        total = seconds.get("total")
        if isinstance(device, str) and isinstance(threads, int) and total is not None:
            self.learn(run, device, threads, total + (seconds.get("shared") or 0.0))

    def of(self, run: Run, device: str, threads: int) -> Limit:
        """The limit of ``run`` on a device with so many threads."""
        if self._timeout is not None:
            return Limit(self._timeout or inf, f"stopped after {self._timeout:g} seconds")
        longest = self._longest.get(kind_of(run, device, threads))
        if longest is None:
            seconds, why = UNKNOWN_SECONDS, "no run is expected to take that"
        else:
            seconds = max(LEAST_SECONDS, FACTOR * longest)
            why = f"a run like it took {duration(longest)}"
        return Limit(
            seconds,
            f"stopped after {duration(seconds)} ({why}); `--timeout SECONDS` sets another limit, 0 none",
        )


def kind_of(run: Run, device: str, threads: int) -> str:
    """Return the kind of a run: those of one take about the same time and memory.

    Only bit widths and seeds differ.
    """
    spec = run.spec
    words: dict[str, Any] = {
        "method": [spec.method.name, spec.method.settings],
        "model": spec.model.name,
        "task": [spec.task.name, spec.task.limit],
        "images": spec.calibration.images,
        "source": spec.calibration.source_title,
        "scope": spec.scope,
        "device": [device.partition(":")[0], threads],
    }
    return canonical_json(words)

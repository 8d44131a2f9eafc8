"""How long the rest of a sweep will take, from the seconds of runs of like kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from vit_ptq_bench.bench.planning.plan import Run
from vit_ptq_bench.bench.records.spec import canonical_json


class Forecast:
    """Learns the seconds of finished runs and estimates those to come."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def learn(self, run: Run, seconds: float) -> None:
        """Note that ``run`` took so many seconds."""
        for kind in _kinds(run):
            self._seconds[kind].append(seconds)

    def estimate(self, run: Run) -> float | None:
        """Expected seconds of ``run``, from the most similar runs known; None if none is known."""
        for kind in _kinds(run):
            if known := self._seconds.get(kind):
                return sum(known) / len(known)
        return None

    def remaining(
        self, pending: Iterable[Run], active: Iterable[tuple[Run, float]], workers: int
    ) -> float | None:
        """Expected seconds until all is done, or None while nothing is known.

        Args:
            pending: runs not yet started.
            active: started runs, each with its seconds so far.
            workers: how many run at a time.
        """
        work = [self.estimate(run) for run in pending]
        under_way = [(self.estimate(run), spent) for run, spent in active]
        work += [None if whole is None else max(0.0, whole - spent) for whole, spent in under_way]
        known = [seconds for seconds in work if seconds is not None]
        if len(known) < len(work):
            return None
        return sum(known) / min(workers, max(1, len(known)))


def _kinds(run: Run) -> list[tuple[str, ...]]:
    """Kinds a run belongs to, the narrowest first.

    The settings come before the model: variants of one method can differ a hundredfold.
    """
    method, model = run.spec.method, run.spec.model.name
    settings = canonical_json(method.settings) + run.spec.calibration.source_title
    return [
        ("settings and model", method.name, settings, model),
        ("settings", method.name, settings),
        ("method and model", method.name, model),
        ("method", method.name),
        ("model", model),
        ("any",),
    ]


def duration(seconds: float | None) -> str:
    """Seconds as ``h:mm:ss`` or ``m:ss``; ``-:--`` when unknown."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

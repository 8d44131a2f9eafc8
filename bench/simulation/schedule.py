"""A sweep in time: each device takes the next run of the plan that can begin, as sweeps do."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A run.

    Attributes:
        seconds: it takes, on any of the devices.
        after: place in the plan of the run that has to end before it begins; None: of none.
    """

    seconds: float
    after: int | None = None


@dataclass(frozen=True)
class Schedule:
    """What came of it.

    Attributes:
        makespan: seconds from the first begin to the last end.
        busy: seconds of all runs.
        devices: how many.
        bound: seconds that no order can go below: the work shared out evenly, or the longest run with the
            one that it waits for.
    """

    makespan: float
    busy: float
    devices: int
    bound: float

    @property
    def idle(self) -> float:
        """Share of the devices' time in which they do nothing, 0 to 1."""
        whole = self.makespan * self.devices
        return 1 - self.busy / whole if whole else 0.0


def scheduled(pieces: Sequence[Piece], devices: int) -> Schedule:
    """Return how long the runs take on so many devices, in the order of the plan.

    Args:
        pieces: the runs; one that others wait for waits for none itself.
        devices: at least one.
    """
    waiting: dict[int, list[int]] = defaultdict(list)
    for place, piece in enumerate(pieces):
        if piece.after is not None:
            waiting[piece.after].append(place)
    ready = [place for place, piece in enumerate(pieces) if piece.after is None]
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < devices:
            place = heapq.heappop(ready)
            heapq.heappush(running, (now + pieces[place].seconds, place))
        now = running[0][0]
        while running and running[0][0] == now:  # all that end at once, before the next begin
            _, ended = heapq.heappop(running)
            for place in waiting.pop(ended, ()):
                heapq.heappush(ready, place)
    busy = sum(piece.seconds for piece in pieces)
    return Schedule(now, busy, devices, max(busy / devices, _longest(pieces)))


def _longest(pieces: Sequence[Piece]) -> float:
    chains = (
        piece.seconds + (pieces[piece.after].seconds if piece.after is not None else 0.0)
        for piece in pieces
    )
    return max(chains, default=0.0)

"""How many runs a suite has, counted before they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from vit_ptq_bench.bench.planning.suite import Suite

Say = Callable[[str], None]
"""Takes a sentence for the user."""

MAX_RUNS = 100_000
"""Runs of a suite: planning them takes a minute, and running them the better part of a year."""


def silent(sentence: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Size:
    """How many of each a suite has; a method with variants counts once per variant.

    ``single``: so many of the methods run with one of the seeds. ``sources``: of calibration images.
    """

    models: int
    methods: int
    bits: int
    protocols: int
    scopes: int
    seeds: int
    single: int = 0
    sources: int = 1

    @classmethod
    def of(cls, suite: Suite, models: int, methods: Sequence[str], scopes: int) -> Self:
        """The size of ``suite`` with its globs resolved; ``methods`` has a name once per variant."""
        several = len(suite.seeds) > 1
        return cls(
            models,
            len(methods),
            len(suite.bits),
            len(suite.protocols),
            scopes,
            len(suite.seeds),
            sum(several and name in suite.single_draw for name in methods),
            len(suite.calibration),
        )

    @property
    def runs(self) -> int:
        """Number of runs: each model has one in full precision besides."""
        draws = self.methods * self.seeds - self.single * (self.seeds - 1)
        cells = self.bits * self.protocols * self.scopes * self.sources
        return self.models * (1 + draws * cells)

    def __str__(self) -> str:
        counts = (
            _counted(self.methods, "method"),
            _counted(self.bits, "bit width"),
            _counted(self.protocols, "protocol"),
            *([_counted(self.scopes, "scope")] if self.scopes > 1 else []),
            *([_counted(self.sources, "source")] if self.sources > 1 else []),
            _counted(self.seeds, "seed") + (f" ({self.single} with 1)" if self.single else ""),
        )
        models = _counted(self.models, "model")
        return f"{_counted(self.runs, 'run')}: {models} x ({' x '.join(counts)} + full precision)"


def check_size(suite: Suite, size: Size, say: Say) -> None:
    """Say how large ``suite`` is.

    Raises:
        BenchError: it is larger than anybody means.
    """
    if size.runs > MAX_RUNS:
        raise suite.error(f"{size}; a suite has at most {MAX_RUNS}", "models")
    say(f"suite {suite.name}: {size}")


def _counted(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"

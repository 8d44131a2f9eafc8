"""A share of a plan: for schedulers that start one command several times, each with another number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_ptq_bench.bench.errors import BenchError

if TYPE_CHECKING:
    from vit_ptq_bench.bench.planning.plan import Run

MOST = 100_000


@dataclass(frozen=True)
class Shard:
    """One of several shares.

    Attributes:
        number: from 1.
        count: of all shares.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the share that ``3/16`` means, the third of sixteen.

        Raises:
            BenchError: it means none.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if found is None:
            raise BenchError(f"--shard {text!r}: write it as 3/16, the third of sixteen shares")
        number, count = int(found[1]), int(found[2])
        if not 1 <= count <= MOST or not 1 <= number <= count:
            raise BenchError(
                f"--shard {text!r}: shares are numbered from 1 to their count, which is at most {MOST}"
            )
        return cls(number, count)

    def of(self, runs: Sequence[Run]) -> list[Run]:
        """Return this share of ``runs``, in their order.

        Runs in the order of their ids, which are hashes, go to the shares in turn, so that shares of
        whatever plan cost about the same; the same plan has the same shares on every machine. The
        full-precision run of a model is in every share that needs it.
        """
        dealt = sorted(run.run_id for run in runs if run.reference is not None)
        dealt = dealt or sorted(run.run_id for run in runs)  # nothing but full precision
        own = set(dealt[self.number - 1 :: self.count])
        own |= {run.reference for run in runs if run.run_id in own and run.reference is not None}
        return [run for run in runs if run.run_id in own]

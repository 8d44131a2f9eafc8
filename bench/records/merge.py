"""Records of several folders in one: equal ones become one, different ones of a run are kept and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.files import prepare
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import RUNS, Store


@dataclass(frozen=True)
class Merged:
    """What became of the records that were to come in.

    Attributes:
        counts: ``new``, ``equal``, ``kept`` (the one that was there is better: its run ended well) and
            ``different``.
        findings: what somebody has to look at, a sentence each.
    """

    counts: Counter[str]
    findings: list[str]


def merge(into: Path, sources: Sequence[Path]) -> Merged:
    """Write the records of ``sources`` into a folder, in order; no file of a source is changed.

    Args:
        into: a folder of records, or one that is to become one.
        sources: folders of records.

    Raises:
        BenchError: a source holds no records, or is ``into`` itself; ``into`` cannot be written.
        OSError: the disk is full; what was written stays.
    """
    for source in sources:
        if source.resolve() == into.resolve():
            raise BenchError(f"{source} cannot be merged into itself")
        if not (source / RUNS).is_dir():
            raise BenchError(f"{source} holds no records: it has no folder {RUNS!r}")
    prepare(into)
    merged = Merged(Counter(), [])
    for source in sources:
        _take(Store(into), Store(source), merged)
    return merged


def _says_the_same(into: Store, before: Record, source: Store, record: Record) -> bool:
    """Whether nothing is to be written beside ``before``, an ok record: it says as much, or more."""
    if not record.ok:
        return True
    if (before.metrics, before.n) != (record.metrics, record.n):
        return False
    one, other = into.outcomes(before), source.outcomes(record)
    return one is not None and other is not None and np.array_equal(one, other)


def _take(into: Store, source: Store, merged: Merged) -> None:
    for record in source.records():
        before = into.read(record)
        outcomes = source.outcomes(record)
        if record.ok and outcomes is None:
            merged.findings.append(
                f"{source.path(record)}: its outcomes are missing or damaged; not taken over"
            )
            continue
        if before is not None and before.ok and _says_the_same(into, before, source, record):
            merged.counts["equal" if record.ok else "kept"] += 1
            continue
        written = into.write(record, outcomes, source.replicates(record))
        if written.conflict:
            merged.counts["different"] += 1
            merged.findings.append(
                f"{source.path(record)} has other figures than the record of the same run in {into.root}; "
                f"kept as {written.path.name}"
            )
        else:
            merged.counts["new"] += 1
    merged.findings.extend(
        f"damaged, not taken over: {path}: {reason}" for path, reason in source.damaged
    )
    merged.findings.extend(
        f"{path}: disagrees with its run's record" for path in source.conflicts()
    )

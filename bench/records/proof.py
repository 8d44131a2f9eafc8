"""Whether a record's figures follow from the per-image outcomes beside it."""

from __future__ import annotations

from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store

_LAST_BITS = 1e-9
"""Percent by which a share may differ from its figure: they were computed in one way or the other."""


def flaw(record: Record, store: Store) -> str | None:
    """Return what speaks against the figures of an ok record; None when nothing does."""
    if record.outcomes_sha256 is None:
        return None
    outcomes = store.outcomes(record)
    if outcomes is None:
        return (
            "its per-image outcomes are missing or damaged; run it again with --overwrite missing"
        )
    if len(outcomes) != record.n:
        return f"it says {record.n} images, its outcomes are of {len(outcomes)}"
    name = record.outcomes_metric
    figure = None if name is None else record.metrics.get(name)
    if figure is None:
        return None
    share = 100 * float(outcomes.mean())
    if abs(share - figure) > _LAST_BITS:
        return f"it says {name} {figure:.2f}, its outcomes give {share:.2f}"
    return None

"""Two runs compared image by image."""

from __future__ import annotations

from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.outcomes import Outcomes
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store, load_record
from vit_ptq_bench.bench.report.frame import labels, to_frame
from vit_ptq_bench.bench.report.significance import Paired


def compare(first: str, second: str, results: Path) -> str:
    """Return the paired comparison of two runs as text.

    Args:
        first, second: beginnings of run ids, or record files.
        results: folder of records.

    Raises:
        BenchError: a run is unknown, has no outcomes, or saw other images than the other.
    """
    (store_a, a), (store_b, b) = load_record(first, results), load_record(second, results)
    if a.spec.task != b.spec.task:
        raise BenchError(f"{a.run_id} and {b.run_id} were evaluated on different images")
    hits_a, hits_b = _outcomes(store_a, a), _outcomes(store_b, b)
    paired = Paired.of(hits_a, hits_b)
    low, high = paired.interval
    name_a, name_b = labels(to_frame([a, b])).loc[[0, 1]]
    lines = [
        f"A  {_described(a, name_a)}: {100 * hits_a.mean():.2f} %",
        f"B  {_described(b, name_b)}: {100 * hits_b.mean():.2f} %",
        f"{paired.n} images: both right {paired.both}, only A {paired.only_first}, "
        f"only B {paired.only_second}, neither {paired.neither}",
        f"A - B = {100 * paired.difference:+.2f} points, 95 % interval "
        f"[{100 * low:+.2f}, {100 * high:+.2f}]",
        f"exact McNemar p = {paired.p_value:.3g}",
    ]
    return "\n".join(lines)


def _outcomes(store: Store, record: Record) -> Outcomes:
    found = store.outcomes(record)
    if found is None:
        raise BenchError(
            f"{record.run_id} has no intact per-image outcomes; run it again with --overwrite missing"
        )
    return found


def _described(record: Record, name: str) -> str:
    spec = record.spec
    return f"{spec.run_id}  {spec.model.name} {name} {spec.bits} {spec.protocol}"

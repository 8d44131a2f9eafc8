"""Two runs compared image by image."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.store import load_record
from vit_ptq_bench.bench.report.frame import labels, to_frame
from vit_ptq_bench.bench.report.significance import mcnemar

Z = 1.959963984540054


def compare(first: str, second: str, results: Path) -> str:
    """Return the paired comparison of two runs as text.

    Args:
        first, second: beginnings of run ids, or record files.
        results: folder of records.

    Raises:
        BenchError: a run is unknown, has no outcomes, or saw other images than the other.
    """
    (store_a, a), (store_b, b) = load_record(first, results), load_record(second, results)
    if a.spec["task"] != b.spec["task"]:
        raise BenchError(f"{a.run_id} and {b.run_id} were evaluated on different images")
    hits_a, hits_b = store_a.outcomes(a), store_b.outcomes(b)
    for record, hits in ((a, hits_a), (b, hits_b)):
        if hits is None:
            raise BenchError(
                f"{record.run_id} has no intact per-image outcomes; run it again with --overwrite missing"
            )
    assert hits_a is not None and hits_b is not None
    n = len(hits_a)
    only_a, only_b = int((hits_a & ~hits_b).sum()), int((hits_b & ~hits_a).sum())
    difference = (only_a - only_b) / n
    error = sqrt(max(0.0, (only_a + only_b) / n - difference**2) / n)
    name_a, name_b = labels(to_frame([a, b])).loc[[0, 1]]
    lines = [
        f"A  {a.run_id}  {a.model} {name_a} {a.bits} {a.protocol}: {100 * hits_a.mean():.2f} %",
        f"B  {b.run_id}  {b.model} {name_b} {b.bits} {b.protocol}: {100 * hits_b.mean():.2f} %",
        f"{n} images: both right {int((hits_a & hits_b).sum())}, only A {only_a}, only B {only_b}, "
        f"neither {int((~hits_a & ~hits_b).sum())}",
        f"A - B = {100 * difference:+.2f} points, 95 % interval "
        f"[{100 * (difference - Z * error):+.2f}, {100 * (difference + Z * error):+.2f}]",
        f"exact McNemar p = {mcnemar(hits_a, hits_b):.3g}",
    ]
    return "\n".join(lines)

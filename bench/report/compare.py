"""Two runs compared image by image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.outcomes import Outcomes
from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.records.store import Store, load_record
from vit_ptq_bench.bench.report.frame import labels, to_frame
from vit_ptq_bench.bench.report.significance import Paired


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same images.

    Attributes:
        first, second: their records.
        names: what tables call them.
        shares: of right images, in percent.
        paired: how many images each gets right.
    """

    first: Record
    second: Record
    names: tuple[str, str]
    shares: tuple[float, float]
    paired: Paired

    def to_text(self) -> str:
        """Return the comparison for people."""
        paired = self.paired
        low, high = paired.interval
        (a, b), (share_a, share_b) = self.names, self.shares
        lines = [
            f"A  {_described(self.first, a)}: {share_a:.2f} %",
            f"B  {_described(self.second, b)}: {share_b:.2f} %",
            f"{paired.n} images: both right {paired.both}, only A {paired.only_first}, "
            f"only B {paired.only_second}, neither {paired.neither}",
            f"A - B = {100 * paired.difference:+.2f} points, 95 % interval "
            f"[{100 * low:+.2f}, {100 * high:+.2f}]",
            f"exact McNemar p = {paired.p_value:.3g}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        paired = self.paired
        low, high = paired.interval
        runs = zip((self.first, self.second), self.names, self.shares, strict=True)
        return {
            "runs": [{"run_id": r.run_id, "name": name, "right": share} for r, name, share in runs],
            "images": paired.n,
            "both": paired.both,
            "only_first": paired.only_first,
            "only_second": paired.only_second,
            "neither": paired.neither,
            "difference": 100 * paired.difference,
            "interval": [100 * low, 100 * high],
            "p_value": paired.p_value,
        }


def compare(first: str, second: str, results: Path) -> Comparison:
    """Return the paired comparison of two runs.

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
    name_a, name_b = labels(to_frame([a, b])).loc[[0, 1]]
    return Comparison(
        a,
        b,
        (str(name_a), str(name_b)),
        (100 * float(hits_a.mean()), 100 * float(hits_b.mean())),
        Paired.of(hits_a, hits_b),
    )


def _outcomes(store: Store, record: Record) -> Outcomes:
    found = store.outcomes(record)
    if found is None:
        raise BenchError(
            f"{record.run_id} has no intact per-image outcomes; run it again with --overwrite missing"
        )
    return found


def _described(record: Record, name: str) -> str:
    spec = record.spec
    images = f" on {spec.calibration.source_title}" if spec.calibration.source else ""
    return f"{spec.run_id}  {spec.model.name} {name}{images} {spec.bits} {spec.protocol}"

"""One record as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_ptq_bench.bench.records.record import Record
from vit_ptq_bench.bench.report.footnotes import convention, deviation


def describe(record: Record) -> str:
    """Return a record as text."""
    spec = record.spec
    lines = [
        f"run          {record.run_id}  {record.status}",
        f"method       {record.title} version {spec.method.version} ({record.fidelity})",
        *_pairs("parameters", spec.method.parameters),
        *(f"transform    {name}" for name in spec.method.transforms),
        *(f"table        {name}" for name in spec.method.table),
        f"model        {spec.model.name}  {spec.model.weights}",
        f"task         {spec.task.name} version {spec.task.version}, limit {spec.task.limit}",
        f"bits         {spec.bits}, protocol {spec.protocol}"
        + (f", scope {spec.scope}" if spec.scope else ""),
        f"convention   {convention(record)}",
        f"differs from the common table: {deviation(record) or 'nowhere'}",
        f"calibration  {spec.calibration.images} images, draw {spec.calibration.draw}"
        + (f"; {spec.calibration.marking}" if spec.calibration.source else ""),
        *_pairs(
            "made with", (spec.calibration.source and spec.calibration.source.parameters) or {}
        ),
        *_metrics(record),
        *_pairs("seconds", record.seconds),
        f"memory       {record.peak_memory_mb} MB while calibrating"
        + (" or evaluating" if record.peak_has_evaluation else ""),
        f"size         {record.size_mb} MB",
        *_pairs("stored bits", {kind: _two(mean) for kind, mean in record.stored_bits.items()}),
        *_costs(record),
        *_pairs("environment", {k: v for k, v in record.environment.items() if k != "warnings"}),
        *(f"warning      {text}" for text in record.environment.get("warnings", [])),
        f"time         {record.started} to {record.finished}",
    ]
    if record.error is not None:
        lines.append(f"error        {record.error.get('type')}: {record.error.get('message')}")
        lines += [f"    {line}" for line in record.error.get("traceback", [])]
    return "\n".join(lines)


def _metrics(record: Record) -> list[str]:
    lines = []
    for name, value in sorted(record.metrics.items()):
        low, high = record.intervals.get(name, [None, None])
        error = record.standard_errors.get(name)
        spread = (
            "" if error is None else f"  [{_two(low)}, {_two(high)}], standard error {_two(error)}"
        )
        lines.append(f"{name:<12} {_two(value)} %{spread}, {record.n} images")
    return lines


def _costs(record: Record) -> list[str]:
    """One image in integers, by role."""
    lines = [
        f"cost         {role}: {cost.get('products', 0) / 1e6:.1f} million products, "
        f"{cost.get('bit_operations', 0) / 1e9:.3f} G bit operations, {cost.get('bytes', 0) / 1e3:.1f} kB"
        for role, cost in record.costs.items()
    ]
    if record.bit_operations is None:
        return lines
    return [
        *lines,
        f"cost         in all {record.bit_operations / 1e9:.3f} G bit operations an image",
    ]


def _two(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _pairs(title: str, pairs: Mapping[str, Any]) -> list[str]:
    return (
        [f"{title:<12} " + ", ".join(f"{k} {v}" for k, v in sorted(pairs.items()))] if pairs else []
    )

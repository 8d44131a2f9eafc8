"""Records made by hand, without running anything."""

from dataclasses import replace

from vit_ptq_bench.bench.records.record import Record, new_record
from vit_ptq_bench.bench.records.source import SourceSpec
from vit_ptq_bench.bench.records.spec import RunSpec, table_from_dict

_SITE = {"bits": 4, "symmetric": False, "dynamic": False, "scheme": "uniform"}
TABLE = {
    "qkv.weight": {**_SITE, "granularity": "channel"},
    "attention": {**_SITE, "granularity": "tensor"},
}


def make_record(
    *,
    method: str = "minmax",
    task: str = "fashion",
    model: str = "vit_mini",
    bits: str = "W4A4",
    protocol: str = "equal",
    seed: int = 0,
    value: float = 75.0,
    status: str = "ok",
    fidelity: str = "reimplementation",
    family: str = "other",
    table: dict | None = None,
    parameters: dict | None = None,
    transforms: tuple[str, ...] = (),
    limit: int | None = None,
    variant: str | None = None,
    notes: tuple[str, ...] = (),
    version: int = 1,
    images: int = 32,
    n: int = 4,
) -> Record:
    """Return a record, of four images unless told."""
    data = {
        "method": {"name": method, "version": version, "parameters": parameters or {}}
        | ({"transforms": list(transforms)} if transforms else {}),
        "model": {"name": model, "weights": "sha256:0"},
        "task": {"name": task, "version": 1, "data": "sha256:1", "limit": limit},
        "bits": bits,
        "protocol": protocol,
        "table": table or TABLE,
        "calibration": {"images": images, "draw": seed},
        "seed": seed,
        "precision": "float32",
    }
    spec = RunSpec.from_dict(data)
    if status != "ok":
        error = {"type": "E", "message": "it broke | badly\nsecond line"}
        return new_record(
            spec, status=status, fidelity=fidelity, family=family, error=error, variant=variant
        )
    return new_record(
        spec,
        status="ok",
        fidelity=fidelity,
        family=family,
        variant=variant,
        notes=notes,
        common_table=table_from_dict(TABLE),
        primary_metric="top1",
        metric_titles=(("top5", "top5"),),
        outcomes_metric="top1",
        metrics={"top1": value, "top5": 99.0},
        intervals={"top1": [max(0.0, value - 1), min(100.0, value + 1)], "top5": [98.0, 100.0]},
        standard_errors={"top1": 0.5, "top5": 0.1},
        n=n,
        seconds={"calibrate": 1.25, "total": 3.0},
        peak_memory_mb=512.0,
        size_mb=1.5,
        environment={"device_name": "a CPU", "threads": 2, "torch": "2.11.0"},
    )


MADE = SourceSpec("psaq-vit", 1, {"steps": 30})
"""Calibration images that are made from the model."""


def on(record: Record, source: SourceSpec) -> Record:
    """Return the record as if calibrated on images of another source."""
    spec = record.spec
    return replace(record, spec=replace(spec, calibration=replace(spec.calibration, source=source)))

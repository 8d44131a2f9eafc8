"""The record of one run: what ran, what came out, what it cost, where.

Nothing here imports torch: the leaderboard reads records on machines that have none.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.schema import SCHEMA, problem, upgraded


class DamagedRecord(BenchError):
    """A file that should hold a record does not; the text names the file and what is wrong."""


def canonical_json(obj: Any) -> str:
    """The one JSON text of ``obj``: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: a float is not finite.
        TypeError: something has no JSON form.
    """
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_id(spec: Mapping[str, Any]) -> str:
    """Identity of the run that ``spec`` describes: 16 hex digits."""
    return hashlib.sha256(canonical_json(dict(spec)).encode()).hexdigest()[:16]


def title(method: str, variant: str | None) -> str:
    """Name of a method under a suite's label, for people."""
    return method if variant is None else f"{method} {variant}"


@dataclass(frozen=True)
class Record:
    """One run. A run that did not end ``ok`` lacks what it did not get to (None, or an empty dict).

    Attributes:
        run_id: identity, made from ``spec``.
        spec: everything that decides the result, see docs/architecture.md.
        status: one of `STATUSES`.
        fidelity: how close the method is to its paper's code.
        convention: the method's own words on what it quantizes.
        common_table: the bit table of protocol ``equal`` at this bit width, to compare with.
        primary_metric: the metric of ``metrics`` that methods are ranked by.
        metrics: in percent; a metric that came out as NaN or infinite is None.
        intervals: 95 % interval of each metric, in percent.
        standard_errors: of each metric, in percent.
        n: number of images evaluated.
        seconds: wall time of each phase (load, calibrate, save, evaluate, total); ``shared`` is the part of
            the calibration that another run has spent.
        peak_memory_mb: highest memory use while calibrating, in MB.
        size_mb: size of the saved quantized model, in MB.
        environment: machine, software and settings.
        error: type, message and traceback (a list of lines) of a run that is not ok.
        outcomes_sha256: checksum of the per-image outcomes beside the record.
        started: UTC time in ISO 8601.
        finished: UTC time in ISO 8601.
        variant: the label under which a suite ran these settings; for people, no part of the
            identity. None: the suite gave none.
        schema: version of this layout.
    """

    run_id: str
    spec: dict[str, Any]
    status: str
    fidelity: str
    convention: str | None
    common_table: dict[str, Any] | None
    primary_metric: str | None
    metrics: dict[str, float | None]
    intervals: dict[str, list[float | None]]
    standard_errors: dict[str, float | None]
    n: int | None
    seconds: dict[str, float | None]
    peak_memory_mb: float | None
    size_mb: float | None
    environment: dict[str, Any]
    error: dict[str, Any] | None
    outcomes_sha256: str | None
    started: str | None
    finished: str | None
    variant: str | None = None
    schema: int = SCHEMA

    @property
    def ok(self) -> bool:
        """Whether the run is done."""
        return self.status == "ok"

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.spec["task"]["name"]

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.spec["model"]["name"]

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.spec["method"]["name"]

    @property
    def title(self) -> str:
        """Method and variant, like ``mgrq +obwr``."""
        return title(self.method, self.variant)

    @property
    def bits(self) -> str:
        """Bit width, like ``W4A4``."""
        return self.spec["bits"]

    @property
    def protocol(self) -> str:
        """``equal`` or ``authors``."""
        return self.spec["protocol"]

    @property
    def scope(self) -> str:
        """What of a detector was quantized; empty where it is always the whole model."""
        return self.spec.get("scope") or ""

    @property
    def seed(self) -> int:
        """Seed of the calibration draw and of every random generator."""
        return self.spec["seed"]

    @property
    def value(self) -> float | None:
        """The primary metric in percent; None unless the run is ok."""
        return self.metrics.get(self.primary_metric) if self.ok and self.primary_metric else None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready data; numbers that are not finite become None."""
        return {field.name: _finite(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: object, source: Path | str = "record") -> Record:
        """Inverse of `to_dict`; reads older layouts too.

        Args:
            data: parsed JSON.
            source: the file it came from, for the error.

        Raises:
            DamagedRecord: unknown schema version, missing or unknown keys, wrong types, or a run id
                that does not belong to the spec.
        """
        data = upgraded(data)
        wrong = problem(data)
        if wrong is not None or not isinstance(data, dict):
            raise DamagedRecord(f"{source}: {wrong}")
        expected = run_id(data["spec"])
        if data["run_id"] != expected:
            raise DamagedRecord(
                f"{source}: run_id is {data['run_id']}, but its spec has the id {expected}; "
                "the file was edited or belongs to another version"
            )
        return cls(**data)


def new_record(spec: Mapping[str, Any], *, status: str, fidelity: str, **known: Any) -> Record:
    """The record of a run that has just ended.

    Args:
        spec: everything that decides the result.
        status: one of `STATUSES`.
        fidelity: of the method.
        known: any other field of `Record`; what is not given is None or empty.

    Raises:
        TypeError: ``known`` has a name that is no field.
        DamagedRecord: a value has the wrong type, or an ok run lacks its primary metric.
    """
    nothing: dict[str, Any] = {field.name: None for field in fields(Record)}
    nothing |= {name: {} for name in EMPTY}
    nothing |= {"schema": SCHEMA, "run_id": run_id(spec), "spec": dict(spec)}
    unknown = set(known) - set(nothing)
    if unknown:
        raise TypeError(f"a record has no field {sorted(unknown)}")
    data = nothing | known | {"status": status, "fidelity": fidelity}
    return Record.from_dict(_finite(data), f"record of run {nothing['run_id']}")


EMPTY = ("metrics", "intervals", "standard_errors", "seconds", "environment")


def _finite(value: Any) -> Any:
    """``value`` with every float that JSON cannot express replaced by None, and tuples by lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


REFERENCE_FIDELITY = "reference"

"""The record of one run: what ran, what came out, what it cost, where."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vit_ptq_bench.bench.errors import BenchError
from vit_ptq_bench.bench.records.schema import SCHEMA, problem, upgraded
from vit_ptq_bench.bench.records.spec import (
    RunSpec,
    WrongSpec,
    canonical_json,
    table_from_dict,
    table_to_dict,
)
from vit_ptq_bench.methods.errors import MethodError
from vit_ptq_bench.methods.quantization.bits import MIXED, BitWidth, TensorSpec, role_of

REFERENCE_FIDELITY = "reference"
"""Fidelity of the method that leaves a model in full precision."""


MORE = ":more"
"""Behind the bit width of tables whose rows store more bits on average than it says."""

ROUNDING = 0.005
"""What a mean of stored bits may be above its budget."""


class DamagedRecord(BenchError):
    """A file that should hold a record does not; the text names the file and what is wrong."""


@dataclass(frozen=True)
class Record:
    """One run. A run that did not end ``ok`` lacks what it did not get to (None, or empty).

    Attributes:
        spec: everything that decides the result.
        status: one of `schema.STATUSES`.
        fidelity: how close the method is to its paper's code.
        family: what kind of method it is.
        notes: what the method says of itself beyond its bit table.
        common_table: the bit table of protocol ``equal`` at this bit width, to compare with.
        primary_metric: the metric of ``metrics`` that methods are ranked by.
        metric_titles: (metric, title) of those that tables show beside the first, in order.
        outcomes_metric: the metric that is the share of right outcomes; None: none is.
        data_notes: how the data were read: form of labels, what was left out or normalised.
        metrics: in percent; a metric that came out as NaN or infinite is None.
        intervals: 95 % interval of each metric, in percent.
        standard_errors: of each metric, in percent.
        n: number of images evaluated.
        seconds: wall time of each phase (load, calibrate, save, evaluate, total); ``shared`` is the part of
            the calibration that another run has spent.
        peak_memory_mb: highest memory use in MB: on a CPU of the process while calibrating, on a GPU what
            torch had reserved of it while calibrating or evaluating.
        size_mb: size of the saved quantized model, in MB.
        stored_bits: of weights and of activations, on average over values; see `mean_bits`.
        found_bits: entry of the bit table, of one operation -> bits that were chosen for it in the place of
            the spec's; None where nobody was to choose.
        costs: of one image in integers, by role: products, bit operations, bytes; see `costs_by_role`. Empty
            where it was not counted.
        environment: machine, software and settings.
        error: type, message and traceback (a list of lines) of a run that is not ok.
        outcomes_sha256: checksum of the per-image outcomes beside the record.
        model_sha256: checksum of the saved quantized model.
        started: UTC time in ISO 8601.
        finished: UTC time in ISO 8601.
        variant: the label under which a suite ran these settings; for people, no part of the
            identity. None: the suite gave none.
        schema: version of this layout.
    """

    spec: RunSpec
    status: str
    fidelity: str
    family: str = "other"
    notes: tuple[str, ...] = ()
    common_table: Mapping[str, TensorSpec] | None = None
    primary_metric: str | None = None
    metric_titles: tuple[tuple[str, str], ...] = ()
    outcomes_metric: str | None = None
    data_notes: tuple[str, ...] = ()
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    intervals: Mapping[str, list[float | None]] = field(default_factory=dict)
    standard_errors: Mapping[str, float | None] = field(default_factory=dict)
    n: int | None = None
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    size_mb: float | None = None
    stored_bits: Mapping[str, float | None] = field(default_factory=dict)
    found_bits: Mapping[str, int] | None = None
    costs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    outcomes_sha256: str | None = None
    model_sha256: str | None = None
    started: str | None = None
    finished: str | None = None
    variant: str | None = None
    schema: int = SCHEMA

    @property
    def peak_has_evaluation(self) -> bool:
        """Whether ``peak_memory_mb`` is that of the evaluation too, as on a GPU."""
        return str(self.environment.get("device", "")).startswith("cuda")

    @property
    def run_id(self) -> str:
        """Identity, made from ``spec``."""
        return self.spec.run_id

    @property
    def ok(self) -> bool:
        """Whether the run is done."""
        return self.status == "ok"

    @property
    def title(self) -> str:
        """Method and variant, like ``mgrq +obwr``."""
        return self.spec.title(self.variant)

    @property
    def bit_operations(self) -> int | None:
        """Bit operations of one image, of all roles; None: they were not counted."""
        if not self.costs:
            return None
        return sum(cost.get("bit_operations", 0) for cost in self.costs.values())

    @property
    def own_bits(self) -> dict[str, int]:
        """Bits of single operations, those of the spec's table and those that were found."""
        given = {key: spec.bits for key, spec in self.spec.table.items() if key != role_of(key)}
        return given | dict(self.found_bits or {})

    @property
    def standing_bits(self) -> str:
        """The bit width of the tables that the run stands in.

        Where more is stored on average than the width says it is ``W4A4:more``, else ``W4A4:mixed`` where
        bits differ from operation to operation: neither stands among those of one width everywhere.
        """
        try:
            width = BitWidth.parse(self.spec.bits)
        except MethodError:  # of another program
            return self.spec.bits
        means = {"weight": width.weight, "activation": width.activation}
        more = any(
            (self.stored_bits.get(kind) or 0) > mean + ROUNDING for kind, mean in means.items()
        )
        if not more and not self.own_bits:
            return self.spec.bits
        plain = BitWidth(width.weight, width.activation)
        return f"{plain}{MORE if more else MIXED}"

    @property
    def value(self) -> float | None:
        """The primary metric in percent; None unless the run is ok."""
        return self.metrics.get(self.primary_metric) if self.ok and self.primary_metric else None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON-ready data; numbers that are not finite become None."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        del data["common_table"]
        data |= {
            "run_id": self.run_id,
            "spec": self.spec.to_dict(),
            "common_differs": self._common_differs(),
        }
        finite: dict[str, Any] = _finite(data)
        return finite

    def _common_differs(self) -> dict[str, dict[str, Any]] | None:
        """The sites of the common table that are others than in the spec's, for most are the same."""
        common, own = self.common_table, self.spec.table
        if common is None:
            return None
        return table_to_dict({site: spec for site, spec in common.items() if spec != own.get(site)})

    @classmethod
    def from_dict(cls, data: object, source: Path | str = "record") -> Record:
        """Inverse of `to_dict`; reads older layouts too. A checksum, where there is one, is checked.

        Args:
            data: parsed JSON.
            source: the file it came from, for the error.

        Raises:
            DamagedRecord: unknown schema version, missing or unknown keys, wrong types, a run id that
                does not belong to the spec, or a checksum that is not that of the rest.
        """
        data, whole = _without_checksum(data)
        data = upgraded(data)
        wrong = problem(data)
        if wrong is not None or not isinstance(data, dict):
            raise DamagedRecord(f"{source}: {wrong}")
        try:
            spec = RunSpec.from_dict(data["spec"])
            common = _common_table(spec, data["common_differs"])
        except (WrongSpec, MethodError) as error:
            raise DamagedRecord(f"{source}: {error}") from error
        if data["run_id"] != spec.run_id:
            raise DamagedRecord(
                f"{source}: run_id is {data['run_id']}, but its spec has the id {spec.run_id}; "
                "the file was edited or belongs to another version"
            )
        if not whole:  # last: what else is wrong says more
            raise DamagedRecord(
                f"{source}: its checksum is not that of its content: the file was edited or damaged"
            )
        rest = {k: value for k, value in data.items() if k not in ("run_id", "common_differs")}
        rest |= {
            "spec": spec,
            "common_table": common,
            "notes": tuple(data["notes"]),
            "data_notes": tuple(data["data_notes"]),
            "metric_titles": tuple((name, title) for name, title in data["metric_titles"]),
        }
        return cls(**rest)


CHECKSUM = "checksum"
"""Key of the checksum in a record's file."""


def checksum(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of a record's data, of which the checksum is no part."""
    return f"sha256:{hashlib.sha256(canonical_json(data).encode()).hexdigest()}"


def _without_checksum(data: object) -> tuple[object, bool]:
    """The data of a record's file without its checksum, and whether that is right, where there is one."""
    if not isinstance(data, dict) or CHECKSUM not in data:
        return data, True
    rest = {key: value for key, value in data.items() if key != CHECKSUM}
    return rest, data[CHECKSUM] == checksum(rest)


def _common_table(
    spec: RunSpec, differs: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, TensorSpec] | None:
    """The common table of a run, from the sites in which it is not the run's own.

    Raises:
        WrongSpec: a site that the run's table does not have.
    """
    if differs is None:
        return None
    unknown = sorted(set(differs) - set(spec.table))
    if unknown:
        raise WrongSpec(f"common_differs has sites that the run's table has not: {unknown}")
    shared = {site: entry for site, entry in spec.table.items() if site == role_of(site)}
    return {**shared, **table_from_dict(differs)}


def new_record(
    spec: RunSpec, *, status: str, fidelity: str, family: str = "other", **known: Any
) -> Record:
    """The record of a run that has just ended.

    Args:
        spec: everything that decides the result.
        status: one of `schema.STATUSES`.
        fidelity, family: of the method.
        known: any other field of `Record`; what is not given is None or empty.

    Raises:
        TypeError: ``known`` has a name that is no field.
        DamagedRecord: a value has the wrong type, or an ok run lacks its primary metric.
    """
    record = Record(spec, status, fidelity, family, **known)
    return Record.from_dict(record.to_dict(), f"record of run {spec.run_id}")


def now() -> str:
    """UTC time, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _finite(value: Any) -> Any:
    """``value`` with every float that JSON cannot express replaced by None, and tuples by lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

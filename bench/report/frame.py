"""Records as data frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vit_ptq_bench.bench.records.record import MORE, Record
from vit_ptq_bench.bench.records.spec import canonical_json
from vit_ptq_bench.bench.report.footnotes import convention, deviation
from vit_ptq_bench.methods.quantization.bits import MIXED

Loader = Callable[[Record], "np.ndarray[Any, np.dtype[np.bool_]] | None"]
"""Gives the per-image outcomes of a record, or None."""

SOURCE = "calibration_source"
"""Column: where calibration images come from, if not from the training data. Such rows have own tables."""

FREEDOM = ((2, MORE), (1, MIXED), (0, ""))
"""Ends of bit widths, from the one that says most."""

GROUP = ["task", "task_version", "data", "limit", "protocol", "scope", "model", "weights"]
"""What rows must share to stand in one table, bit width apart."""


def to_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row per record, flat: the columns of the CSV file.

    Of a method that chooses bits itself all draws have the bits of one table: where a single draw stores
    bits by operation, or more than the width says, all stand there.
    """
    rows = [_row(record) for record in records]
    frame = pd.DataFrame(rows, columns=list(_row_columns(rows)))
    frame["bits"] = _shared_bits(frame, [record.spec.bits for record in records])
    return frame.sort_values(
        ["task", "model", "protocol", "scope", SOURCE, "bits", "method", "seed", "run_id"]
    )


def _shared_bits(frame: pd.DataFrame, asked: Sequence[str]) -> pd.Series[str]:
    """Bits of the tables that rows stand in; ``asked``: of each row, the bits of its run's specification."""
    draws = [*GROUP, SOURCE, "method", "method_version", "parameters", "calibration_images"]
    free = frame["bits"].map(lambda bits: next(i for i, end in FREEDOM if bits.endswith(end)))
    frame = frame[draws].assign(asked=list(asked), free=free, bits=frame["bits"])
    most = frame.groupby([*draws, "asked"], dropna=False, sort=False)["free"].transform("max")
    width = frame["bits"].str.partition(":")[0]
    return frame["bits"].where(most == free, width + most.map(dict(FREEDOM)))


def _row(record: Record) -> dict[str, Any]:
    spec, name = record.spec, record.primary_metric
    low, high = record.intervals.get(name or "", [None, None])
    row = {
        "run_id": record.run_id,
        "task": spec.task.name,
        "task_version": spec.task.version,
        "data": spec.task.data or "",
        "limit": spec.task.limit,
        "model": spec.model.name,
        "weights": spec.model.weights or "",
        "method": spec.method.name,
        "method_version": spec.method.version,
        "variant": record.variant or "",
        "parameters": json.dumps(spec.method.settings, sort_keys=True),
        "bits": record.standing_bits,
        "protocol": spec.protocol,
        "scope": spec.scope or "",
        "seed": spec.seed,
        "calibration_images": spec.calibration.images,
        SOURCE: spec.calibration.source_title,
        "fidelity": record.fidelity,
        "family": record.family,
        "status": record.status,
        "metric": name or "",
        "value": record.value,
        "low": low,
        "high": high,
        "n": record.n,
        "peak_memory_mb": record.peak_memory_mb,
        "size_mb": record.size_mb,
        "weight_bits": record.stored_bits.get("weight"),
        "activation_bits": record.stored_bits.get("activation"),
        **_made_by(record),
        "deviation": deviation(record),
        "convention": convention(record),
        "error": (record.error or {}).get("message", ""),
    }
    row |= {f"metric_{key}": value for key, value in record.metrics.items()}
    return row | {f"seconds_{key}": value for key, value in record.seconds.items()}


def _made_by(record: Record) -> dict[str, Any]:
    """The machine and the program."""
    environment = record.environment
    return {
        "cpu": environment.get("device_name") or "",
        "threads": environment.get("threads"),
        "torch": environment.get("torch") or "",
        "bench_version": environment.get("vit_ptq_bench") or "",
        "commit": commit(record),
        "warnings": len(environment.get("warnings", [])),
    }


def commit(record: Record) -> str:
    """Return the commit that a record was made from, with ``+`` behind it where files were changed."""
    found = record.environment.get("git_commit") or ""
    return f"{found}+" if found and record.environment.get("git_dirty") else str(found)


def _row_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, None]:
    """Columns in a fixed order: the common ones, then what only some rows have, by name."""
    base = [key for key in rows[0] if not key.startswith(("metric_", "seconds_"))]
    extra = sorted({key for row in rows for key in row} - set(base))
    return dict.fromkeys([*base, *extra])


def labels(frame: pd.DataFrame) -> pd.Series[str]:
    """Row names: the method and its variant; where that is not enough, the settings that differ.

    Settings that ran under several variants are one row that names them all.
    """
    settings = pd.Series(
        [
            {"version": version, "calibration images": images, **json.loads(parameters)}
            for version, images, parameters in zip(
                frame["method_version"],
                frame["calibration_images"],
                frame["parameters"],
                strict=True,
            )
        ],
        index=frame.index,
        dtype=object,
    )
    identity = frame["method"] + settings.map(canonical_json)
    variants = frame["variant"].groupby(identity).transform(_joined)
    names = (frame["method"] + " " + variants).str.strip()
    result = names.copy()
    for name, ids in identity.groupby(names):
        if ids.nunique() > 1:
            told_apart = _told_apart(str(name), list(settings.loc[ids.index]))
            result.update(pd.Series(told_apart, index=ids.index))
    return _each_seed_once(frame, result)


def _each_seed_once(frame: pd.DataFrame, names: pd.Series[str]) -> pd.Series[str]:
    """Names with the run's id where two runs of one name have the same seed: no row counts a seed twice.

    Their calibration images or their bit tables differ, which no setting tells.
    """
    keys = frame[[*GROUP, SOURCE, "bits", "seed"]].assign(name=names)
    twice = keys.duplicated(keep=False)
    return names.where(~twice, names + " (run " + frame["run_id"].str[:8] + ")")


def _joined(variants: pd.Series[str]) -> str:
    return "/".join(sorted(set(variants) - {""}))


def _told_apart(name: str, settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """``name`` with those of the settings that are not the same in all."""
    keys = dict.fromkeys(key for own in settings for key in own)
    varying = [key for key in keys if len({canonical_json(own.get(key)) for own in settings}) > 1]
    return [
        f"{name} ({', '.join(f'{key}={_shown(own.get(key))}' for key in varying)})"
        for own in settings
    ]


def _shown(value: Any) -> str:
    """A setting in a row's name; transforms one after the other."""
    return "+".join(value) if isinstance(value, list) else str(value)
